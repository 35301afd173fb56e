package chaos

import "slices"

// checkOutcome compares the last event of an operation with what OCP did.
func (c *checker) checkOutcome(l life) {
	e := l.last()
	if !final(e.State) {
		return // stuck, which checkFinality reports
	}
	o := outcome{checker: c, life: l, last: e, effects: l.effects(), followed: taskOf(e.document)}
	if o.followed != 0 && !slices.Contains(o.effects, o.followed) {
		c.say(wrongTask, l.id, "it followed task %d, which is of operation %q; its own: %v; %s", o.followed, c.owner[o.followed], o.effects, describeLife(l))
		return
	}
	switch e.State {
	case "succeeded":
		o.checkSucceeded()
	case "failed":
		o.checkFailed()
	default:
		o.checkUndone()
	}
	for _, e := range l.events {
		if at := e.Request.ExpiresAt; e.token == "submitting" && !at.IsZero() && !e.SubmittedAt.Before(at) {
			c.say(unwantedEffect, l.id, "submitted at %s, expired at %s", clock(e.SubmittedAt), clock(at))
		}
	}
}

// outcome is an operation that has ended, beside what its calls started in OCP.
type outcome struct {
	*checker
	life     life
	last     event
	effects  []int64 // tasks that its calls started
	followed int64   // the task in its last event
}

func (o outcome) status() string { return o.tasks[o.followed].status }

func (o outcome) wrong(why string) {
	o.say(wrongOutcome, o.life.id, "%s %s: %s; task %d is %q, its calls started %v; %s",
		o.last.State, o.last.Reason.Code, why, o.followed, o.status(), o.effects, describeLife(o.life))
}

// checkNothingDone allows no task, and for a rejected operation or a dry run no call either.
func (o outcome) checkNothingDone() {
	mayCall := o.last.State != "rejected" && !o.last.Request.DryRun
	if len(o.effects) > 0 || !mayCall && len(o.life.posts) > 0 {
		o.say(unwantedEffect, o.life.id, "%s, dry run %v, but %d calls started %v; %s",
			o.last.State, o.last.Request.DryRun, len(o.life.posts), o.effects, describeLife(o.life))
	}
}

func (o outcome) checkSucceeded() {
	switch {
	case o.last.Request.DryRun:
		o.checkNothingDone()
	case o.last.Reason.Code == "ALREADY_STOPPED" || o.last.Reason.Code == "ALREADY_RUNNING":
		stopped := o.last.Reason.Code == "ALREADY_STOPPED"
		o.checkNothingDone()
		if o.last.Kind == "restart" || stopped != (o.last.Kind == "stop") || !o.mayBe(o.last.Server, stopped, o.life.span()) {
			o.wrong("there was something to do")
		}
	case o.last.Reason.Code == "ALREADY_DONE":
		for _, id := range o.effects {
			if o.tasks[id].status != "SUCCESSFUL" {
				o.wrong("the task is not successful")
			}
		}
	case o.status() != "SUCCESSFUL":
		o.wrong("the task is not successful")
	}
}

func (o outcome) checkFailed() {
	switch {
	case o.last.Reason.Code == "OUTCOME_UNKNOWN": // which is the truth
	case o.followed != 0 && o.status() != "FAILED":
		o.wrong("the task has not failed")
	case o.followed == 0 && len(o.effects) > 0:
		o.wrong("a task was started")
	case o.last.Reason.Code == "SUBTASK_FAILED" && o.followed == 0:
		o.wrong("there is no task")
	case o.last.Reason.Code == "ROLLED_BACK" || o.last.Reason.Code == "TASK_CANCELLED":
		o.wrong("nobody did that")
	}
}

// checkUndone is about operations that were rejected or cancelled, or have expired.
func (o outcome) checkUndone() {
	o.checkNothingDone()
	if o.last.Reason.Code == "WRONG_STATE" && (o.last.Kind != "restart" || !o.mayBe(o.last.Server, true, o.life.span())) {
		o.wrong("the server was in no such state")
	}
	switch {
	case o.last.State == "cancelled" && o.cancels[o.life.id] == 0:
		o.say(unorderedEnd, o.life.id, "cancelled without an order")
	case o.last.State == "expired" && (o.last.Request.ExpiresAt.IsZero() || o.last.EndedAt.Before(o.last.Request.ExpiresAt)):
		o.say(unorderedEnd, o.life.id, "expired at %s, to expire at %s", clock(o.last.EndedAt), clock(o.last.Request.ExpiresAt))
	}
}

// span is from the operation's first event to its last but duplicates.
func (l life) span() span {
	s := span{from: l.events[0].stored}
	for _, e := range l.events {
		if e.token != "duplicate" {
			s.to = e.stored
		}
	}
	return s
}

// mayBe reports whether a server may have been stopped, or running, at some moment
// of s, by what OCP did to it: a task changes its state somewhere between its
// beginning and its end, and a state lasts until something else has certainly changed it.
// A server that a failed task has left between two states counts as neither.
func (c *checker) mayBe(server int64, stopped bool, s span) bool {
	type change struct {
		span
		stopped bool
	}
	changes := []change{{}} // all run in the beginning
	for _, t := range c.tasks {
		if t.server == server && t.status == "SUCCESSFUL" {
			changes = append(changes, change{span{t.started, t.finished}, t.kind == "stop"})
		}
	}
	for _, m := range c.mended {
		if m.server == server {
			changes = append(changes, change{span: span{m.at, m.at}})
		}
	}
	for _, made := range changes {
		undone := slices.ContainsFunc(changes, func(d change) bool {
			return d.stopped != stopped && !d.from.Before(made.to) && d.to.Before(s.from)
		})
		if made.stopped == stopped && made.from.Before(s.to) && !undone {
			return true
		}
	}
	return false
}
