package ocpsim

import (
	"fmt"
	"hash/fnv"
	"strings"
	"time"
)

// logOf is a subtask's log in the manner of subtasks-log.json: a header for each execution, and its lines. Times
// within an execution are made up, but always the same: a log may be fetched twice.
func (t *task) logOf(sub *subtask) string {
	var b strings.Builder
	for i, r := range sub.runs {
		l := runLog{Builder: &b, thread: t.threadOf(sub, i), at: r.started}
		fmt.Fprintf(&b, "############{%s}{%s}############\n", r.operation, stamp(r.started))
		l.line("INFO", "c.a.o.c.m.t.model.SubtaskInstanceEntity", "Run subtask, id=%d, context=%s, executor=%s", sub.id, t.contextString(), ocpServer)
		l.line("INFO", sub.logger(), "[%s] begin", sub.className())
		for _, srv := range t.servers {
			l.line("INFO", sub.logger(), "%s: server [%d:%s:%d], zone [%s]", sub.step.does, srv.ID, srv.IP, srv.Port, srv.zone.Name)
		}
		if r.status == statusRunning {
			continue
		}
		l.at = r.finished
		if r.status == statusSuccessful {
			l.line("INFO", sub.logger(), "[%s] end", sub.className())
		}
		l.line("INFO", "c.a.o.c.m.t.model.SubtaskInstanceEntity", "Set state for subtask: %d, current state: RUNNING, new state: %s", sub.id, r.status)
		if r.status == statusFailed {
			l.line("ERROR", sub.logger(), "[%s] failed: %s", sub.className(), r.cause)
		}
	}
	return b.String()
}

// className is the class without its package.
func (sub *subtask) className() string {
	return sub.step.class[strings.LastIndexByte(sub.step.class, '.')+1:]
}

// logger is the class as Spring abbreviates it for the log.
func (sub *subtask) logger() string {
	pkg, class, _ := strings.Cut(sub.step.class, ".")
	return "a.o.s.t.b." + pkg[:1] + "." + class
}

// runLog writes the lines of one execution.
type runLog struct {
	*strings.Builder
	thread string
	at     time.Time
}

// lineEvery is how long OCP takes from one line to the next.
const lineEvery = 12 * time.Millisecond

func (l *runLog) line(level, logger, format string, args ...any) {
	fmt.Fprintf(l, "%s %5s 57200 --- [%s] %-40s : %s\n\n", l.at.Format("2006-01-02 15:04:05.000"), level, l.thread, logger, fmt.Sprintf(format, args...))
	l.at = l.at.Add(lineEvery)
}

// threadOf names the thread, trace and span of an execution.
func (t *task) threadOf(sub *subtask, run int) string {
	h := fnv.New64a()
	fmt.Fprint(h, t.id, sub.id, run)
	sum := h.Sum64()
	return fmt.Sprintf("pool-subtask-executor-thread-%d,%016x,%012x", sum%64, sum, sum>>16)
}
