package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/agenttest"
	"github.com/obwarden/obwarden/events"
)

func TestCleanText(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain, ä, 停止":          "plain, ä, 停止",
		"a\nb\tc":               "a\nb c",
		"\x1b[31mred\x1b[0m":    "�[31mred�[0m",
		"\u009b31m":             "�31m",
		"\u202eabc\u2066\u200b": "�abc��",
		"\xff":                  "�",
		"a\rb\x00\x7f":          "a�b��",
	} {
		if got := cleanText(in); got != want {
			t.Errorf("cleanText(%q) = %q, want %q", in, got, want)
		}
	}
	if got := cleanLine("a\r\nb\n\nc"); got != "a b c" {
		t.Errorf("cleanLine = %q", got)
	}
}

func TestCleanedReachesEveryText(t *testing.T) {
	t.Parallel()
	const evil = "\x1b[2J"
	yes := true
	op := events.Operation{
		Schema: evil, OperationID: evil, Kind: evil, State: evil, IdempotencyKey: evil, Agent: evil, Source: evil, Traceparent: evil,
		Request: events.Request{
			IdempotencyKey: evil, StopType: evil, Reason: evil, RequestedBy: evil, FreezeServer: &yes, Labels: map[string]string{evil: evil},
		},
		Reason: &events.Reason{Code: evil, Message: evil}, Warnings: []string{evil},
		Error:   &events.Error{Code: evil, Message: evil, TraceID: evil, Subtask: evil, Log: evil + "\n" + evil},
		Changes: []events.Change{{Name: evil, From: evil, To: evil}},
		Task: &events.Task{Name: evil, Status: evil, Operation: evil, Subtasks: []events.Subtask{{
			ID: 1, Name: evil, Status: evil, Operation: evil, Timing: evil, Upstreams: []int64{},
		}}},
	}
	if got := fmt.Sprintf("%+v %+v %+v %+v", cleaned(op), *cleaned(op).Reason, *cleaned(op).Error, *cleaned(op).Task); strings.Contains(got, "\x1b") {
		t.Errorf("got %q", got)
	}
	if op.Warnings[0] != evil || op.Task.Subtasks[0].Name != evil {
		t.Error("the operation itself was changed")
	}
	for _, token := range []events.State{events.Accepted, events.Running, events.Progress, events.Stalled, events.Duplicate, events.Failed, evil} {
		u := newUI(app{stdout: agenttest.NewOutput(), stderr: agenttest.NewOutput()}, false)
		if got := u.eventLine(events.Event{Operation: op, Token: token}, true); strings.Contains(got, "\x1b") {
			t.Errorf("%s: got %q", token, got)
		}
	}
}

func TestTextFitsItsColumns(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"", "short", "停止 observer 服务器 and more", strings.Repeat("x", 50), "one two three four five"} {
		for width := 2; width < 30; width++ {
			for name, lines := range map[string][]string{"cut": {cut(s, width)}, "cutMiddle": {cutMiddle(s, width)}, "wrap": wrap(s, width)} {
				for _, l := range lines {
					if textWidth(l) > width {
						t.Errorf("%s(%q, %d): %q is %d columns wide", name, s, width, l, textWidth(l))
					}
				}
			}
		}
	}
	if got, want := cutMiddle("2026-11-24 14:03:29.002 ERROR [pool-manual-subtask] observer did not exit", 60), "2026-11-24 14:03:29.002"; !strings.HasPrefix(got, want) || !strings.HasSuffix(got, " observer did not exit") {
		t.Errorf("got %q", got)
	}
}

func TestDurations(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		-time.Second: "0.0s", 50 * time.Millisecond: "0.0s", 59990 * time.Millisecond: "59.9s", 65 * time.Second: "1m05s",
		127 * time.Minute: "2h07m", 76 * time.Hour: "3d04h",
	} {
		if got := shortDuration(d); got != want {
			t.Errorf("%s: got %s, want %s", d, got, want)
		}
	}
}
