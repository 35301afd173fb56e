package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/obwarden/obwarden/events"
)

// details is everything else that the document says.
func (s style) details(op events.Operation) []line {
	var lines []line
	detail := func(label, text string) {
		if text == "" {
			return
		}
		lines = append(lines, s.note(label, dim, "", text)...)
	}
	at := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format("2006-01-02 15:04:05.000 UTC")
	}
	r := op.Request
	requested := at(op.RequestedAt)
	if r.RequestedBy != "" {
		requested += " by " + r.RequestedBy
	}
	if op.Source != "" {
		requested += " through " + op.Source
	}
	detail("requested", requested)
	detail("why", r.Reason)
	detail("asks", strings.Join(parameters(r), ", "))
	var labels []string
	for _, name := range slices.Sorted(maps.Keys(r.Labels)) {
		labels = append(labels, name+"="+r.Labels[name])
	}
	detail("labels", strings.Join(labels, " "))
	detail("expires", at(r.ExpiresAt))
	if submitted := at(op.SubmittedAt); submitted != "" {
		detail("submitted", fmt.Sprintf("%s, attempt %d", submitted, op.Attempt))
	}
	detail("ended", at(op.EndedAt))
	written := fmt.Sprintf("%d, the last at %s by agent %s", op.N, at(op.UpdatedAt), op.Agent)
	if op.Duplicates > 0 {
		written += fmt.Sprintf("; requested again %d times", op.Duplicates)
	}
	detail("events", written)
	detail("key", op.IdempotencyKey)
	detail("operation", op.OperationID)
	detail("request", fmt.Sprintf("sequence %d of the request stream", op.RequestSequence))
	detail("trace", op.Traceparent)
	detail("times", timings(op.Task))
	return lines
}

// parameters are what a request asks for beyond its kind and its server.
func parameters(r events.Request) []string {
	var all []string
	if r.Force {
		all = append(all, "force")
	}
	if r.FreezeServer != nil {
		all = append(all, fmt.Sprintf("freeze server: %t", *r.FreezeServer))
	}
	if r.StopType != "" {
		all = append(all, "stop type "+r.StopType)
	}
	if r.DryRun {
		all = append(all, "dry run")
	}
	return all
}

// timings says by whose clock the subtasks' times were taken.
func timings(t *events.Task) string {
	if t == nil {
		return ""
	}
	var ocp, observed bool
	for _, s := range t.Subtasks {
		ocp = ocp || s.Timing == events.TimingOCP
		observed = observed || s.Timing == events.TimingObserved
	}
	switch {
	case ocp && observed:
		return "OCP's own; those with ~ are the agent's, up to a look late"
	case ocp:
		return "OCP's own"
	case observed:
		return "~ as the agent saw them, up to a look late"
	}
	return ""
}
