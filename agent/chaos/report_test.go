//go:build linux

package chaos

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// lines writes a report, line by line.
type lines struct{ strings.Builder }

func (l *lines) add(format string, args ...any) { fmt.Fprintf(l, format+"\n", args...) }

// report says to people what a run was and how it ended.
func (a *arena) report(h history, v verdict) string {
	var out lines
	command := fmt.Sprintf("go test ./agent/chaos -run Chaos -chaos.time %s -chaos.ops %d -chaos.seed %d -timeout 2h -v", *flagTime, a.ops, a.seed)
	out.add("version %s, seed %d; again: %s", a.version, a.seed, command)
	out.add("OCP: %d clusters of 6 servers, shape %d, speed %.0f; %s of attack, %s in all", len(a.clusters), a.shape, a.speed,
		flagTime, time.Since(a.began).Round(time.Second))
	a.reportOperations(&out, h)
	a.reportRecovery(&out, h)
	slices.Sort(a.shutdowns)
	out.add("told to end, an agent took: p50 %s, p99 %s, max %s (%d times)",
		round(quantile(a.shutdowns, 0.5)), round(quantile(a.shutdowns, 0.99)), round(quantile(a.shutdowns, 1)), len(a.shutdowns))
	slices.Sort(a.natsUp)
	out.add("NATS, started again, answered after: p50 %s, max %s", round(quantile(a.natsUp, 0.5)), round(quantile(a.natsUp, 1)))
	out.add("slots that stay in the records until the next one is taken in the cluster: %d", len(h.slots))
	out.add("calls of agents that had been paused, too late (an exception that agent/README.md names): %d", len(v.exceptions))
	for _, e := range v.exceptions {
		out.add("  %s", e)
	}
	out.add("VIOLATIONS: %d", len(v.violations))
	out.WriteString(describeViolations(v.violations))
	return out.String()
}

// reportOperations counts requests, faults and outcomes.
func (a *arena) reportOperations(out *lines, h history) {
	lives := h.lives()
	ended, codes := map[string]int{}, map[string]int{}
	posts, attempts := map[string]int{}, map[string]int{}
	resolved := map[string]int{}
	duplicates := 0
	for _, l := range lives {
		if len(l.events) == 0 {
			continue
		}
		e := l.last()
		ended[e.State]++
		duplicates += e.Duplicates
		if e.Reason.Code != "" {
			codes[e.State+" "+e.Reason.Code]++
		}
		posts[fmt.Sprint(len(l.posts))]++
		attempts[fmt.Sprint(e.Attempt)]++
		resolutions(l, resolved)
	}
	out.add("operations: %d published (%s), %d in the journal: %s", a.load.published, table(a.load.kinds), len(lives), table(ended))
	out.add("requests acknowledged: %d, %.0f duplicates per hundred operations; the journal counted %d; cancel orders %d, retry orders %d",
		len(h.requests), 100*float64(len(h.requests)-a.load.published)/float64(max(a.load.published, 1)), duplicates, total(h.cancels), total(h.retries))
	out.add("events in the journal: %d; ends with a reason: %s", len(h.events), table(codes))
	a.reportFaults(out)
	out.add("calls to OCP (POST) per operation: %s; in all %d, of which %d started a task", table(posts), countPosts(h, false), countPosts(h, true))
	out.add("attempts per operation: %s", table(attempts))
	out.add("unanswered calls, by what was found out: %s", table(resolved))
	for _, code := range []string{"ALREADY_DONE", "OUTCOME_UNKNOWN", "OCP_UNANSWERED"} {
		shown := 0
		for _, id := range sortedKeys(lives) {
			if l := lives[id]; len(l.events) > 0 && l.last().Reason.Code == code && shown < 3 {
				out.add("  %s: %s %s", code, id, describeLife(l))
				shown++
			}
		}
	}
}

func (a *arena) reportFaults(out *lines) {
	ofProcesses, others := map[string]int{}, map[string]int{}
	for name, n := range a.counts {
		if strings.HasPrefix(name, "agent ") || strings.HasPrefix(name, "nats kill") || strings.HasPrefix(name, "nats pause") {
			ofProcesses[name] = n
		} else {
			others[name] = n
		}
	}
	out.add("process faults: %d: %s", total(ofProcesses), table(ofProcesses))
	out.add("faults of links and OCP: %d: %s", total(others), table(others))
	for _, p := range append(slices.Clone(a.agents), a.nats) {
		if len(p.exits) > 0 {
			out.add("%s ended by itself and was started again: %s", p.name, table(p.exits))
		}
	}
}

// resolutions counts, by an operation's events, what became of calls without an answer.
func resolutions(l life, resolved map[string]int) {
	e := l.last()
	for _, w := range e.Warnings {
		switch {
		case strings.Contains(w, "OCP shows the task that it started"):
			resolved["task found and adopted"]++
		case strings.Contains(w, "OCP shows no task for it"):
			resolved["already done"]++
		}
	}
	var again int
	for _, e := range l.events {
		if e.token == "submitting" && e.Attempt > 1 {
			again++
		}
	}
	resolved["had not arrived, called again"] += again
	switch e.Reason.Code {
	case "OCP_UNANSWERED", "OUTCOME_UNKNOWN":
		resolved[e.Reason.Code]++
	}
}

// reportRecovery says how long operations made no progress after a fault of a process: the time from its end to the
// next event, or 0 if another agent had gone on before that.
func (a *arena) reportRecovery(out *lines, h history) {
	stored := map[string][]time.Time{}
	for _, e := range h.events {
		stored[e.ID] = append(stored[e.ID], e.stored)
	}
	fromEnd, fromStart := map[string][]time.Duration{}, map[string][]time.Duration{}
	for _, s := range a.struck {
		for _, id := range s.held {
			for _, at := range stored[id] {
				if at.After(s.from) {
					fromEnd[s.name] = append(fromEnd[s.name], max(0, at.Sub(s.to)))
					fromStart[s.name] = append(fromStart[s.name], at.Sub(s.from))
					break
				}
			}
		}
	}
	out.add("recovery, from the end of a fault to the next event of the operations under way (from its beginning in brackets):")
	for _, name := range sortedKeys(fromEnd) {
		end, start := fromEnd[name], fromStart[name]
		slices.Sort(end)
		slices.Sort(start)
		out.add("  %-12s p50 %s (%s), p99 %s (%s), max %s (%s), %d operations", name, round(quantile(end, 0.5)), round(quantile(start, 0.5)),
			round(quantile(end, 0.99)), round(quantile(start, 0.99)), round(quantile(end, 1)), round(quantile(start, 1)), len(end))
	}
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

func countPosts(h history, effective bool) int {
	n := 0
	for _, p := range h.posts {
		if p.kind != "retry" && (!effective || p.task != 0) {
			n++
		}
	}
	return n
}

func table(counts map[string]int) string {
	var parts []string
	for _, name := range sortedKeys(counts) {
		parts = append(parts, fmt.Sprintf("%s: %d", name, counts[name]))
	}
	return strings.Join(parts, ", ")
}

func total(counts map[string]int) int {
	n := 0
	for _, c := range counts {
		n += c
	}
	return n
}
