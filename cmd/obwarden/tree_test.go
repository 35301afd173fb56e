package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/obwarden/obwarden/events"
)

var update = flag.Bool("update", false, "write the golden files anew")

var treeNow = time.Date(2026, 11, 24, 14, 3, 30, 0, time.UTC)

func ago(d time.Duration) time.Time { return treeNow.Add(-d) }

func testOperation(state events.State) events.Operation {
	op := events.Operation{
		Schema: events.OperationSchema, OperationID: "k3q7x2mfrggzdfmztwq2lknnwg", N: 4, Kind: events.Stop, State: state,
		ClusterID: 1, ServerID: 2, IdempotencyKey: "disk-4711", Attempt: 1, Agent: "ops-1", Source: "cli",
		Request: events.Request{
			IdempotencyKey: "disk-4711", ClusterID: 1, ServerID: 2, Reason: "replace disk", RequestedBy: "alice@ops-1",
			Labels: map[string]string{"ticket": "OPS-17", "rack": "b4"},
		},
		RequestSequence: 17, RequestedAt: ago(24 * time.Second), UpdatedAt: ago(time.Second), SubmittedAt: ago(23 * time.Second),
	}
	if state.Final() {
		op.EndedAt = treeNow
	}
	return op
}

func chain(statuses ...string) *events.Task {
	names := []string{"Prepare stop observer", "Stop server", "Stop observer process", "Wait observer stop",
		"Update observer status", "Update zone status", "Sync cluster info", "Update OB cluster status"}
	t := &events.Task{ID: 111102, Name: "Stop OB server", Status: "RUNNING", Operation: "EXECUTE", StartedAt: ago(23 * time.Second), MovedAt: ago(8 * time.Second)}
	at := t.StartedAt
	for i, name := range names {
		status := "PENDING"
		if i < len(statuses) {
			status = statuses[i]
		}
		t.Subtasks = append(t.Subtasks, testSubtask(int64(133820+i), name, status, &at))
		if i > 0 {
			t.Subtasks[i].Upstreams = []int64{int64(133820 + i - 1)}
		}
	}
	return t
}

// testSubtask ran 2 s, 3 s, 4 s … behind the one before it.
func testSubtask(id int64, name, status string, at *time.Time) events.Subtask {
	s := events.Subtask{ID: id, Name: name, Status: status, Operation: "EXECUTE", Upstreams: []int64{}, Runs: 1}
	if status == "PENDING" || status == "READY" {
		return s
	}
	s.Timing, s.StartedAt = events.TimingOCP, *at
	if status != "RUNNING" {
		took := time.Duration(2+id%10) * time.Second
		*at = at.Add(took)
		s.FinishedAt, s.DurationSeconds = *at, took.Seconds()
	}
	return s
}

func allDone() *events.Task {
	t := chain("SUCCESSFUL", "SUCCESSFUL", "SUCCESSFUL", "SUCCESSFUL", "SUCCESSFUL", "SUCCESSFUL", "SUCCESSFUL", "SUCCESSFUL")
	t.Status = "SUCCESSFUL"
	return t
}

func failedOperation() events.Operation {
	op := testOperation(events.Failed)
	op.Task = chain("SUCCESSFUL", "SUCCESSFUL", "FAILED")
	op.Task.Status = "FAILED"
	op.Task.Subtasks[2].Runs, op.Task.Subtasks[2].Operation = 2, "RETRY"
	op.Task.Subtasks[1].Timing = events.TimingObserved
	op.Error = &events.Error{
		Code: "SUBTASK_FAILED", Subtask: "Stop observer process", SubtaskID: 133822, TraceID: "7c2a9f31e0b84d55", HTTPStatus: 200,
		Message: `subtask "Stop observer process" (133822) of task 111102 failed in OCP: observer did not exit on SIGTERM: process still there`,
		Log: strings.Repeat("2026-11-24 14:03:19.104  INFO 8131 --- [pool-manual-subtask-executor8] still waiting\n", 9) +
			"2026-11-24 14:03:28.731  INFO Sending SIGTERM to observer\r\n\tat com.alipay.ocp.service.task\n2026-11-24 14:03:29.002 ERROR observer did not exit on SIGTERM: process still there\n",
	}
	op.Reason = &events.Reason{Code: op.Error.Code, Message: op.Error.Message}
	return op
}

func branching() events.Operation {
	op := testOperation(events.Running)
	op.Kind = events.Restart
	at := ago(23 * time.Second)
	node := func(id int64, name, status string, upstreams ...int64) events.Subtask {
		s := testSubtask(id, name, status, &at)
		s.Upstreams = append(s.Upstreams, upstreams...)
		return s
	}
	op.Task = &events.Task{ID: 9, Name: "Restart OB server", Status: "RUNNING", Operation: "EXECUTE", MovedAt: ago(time.Second), Subtasks: []events.Subtask{
		node(1, "Prepare restart observer", "SUCCESSFUL"),
		node(2, "Stop server", "SUCCESSFUL", 1),
		node(3, "Back up configuration", "SUCCESSFUL", 1),
		node(4, "Flush logs", "RUNNING", 1),
		node(5, "Start server", "PENDING", 2, 3, 4),
		node(6, "Sync cluster info", "PENDING", 5),
		node(7, "Update zone status", "READY", 5),
	}}
	return op
}

func hostile() events.Operation {
	op := testOperation(events.Running)
	op.Task = chain("SUCCESSFUL", "RUNNING")
	op.Task.Name = "停止 OB 服务器\x1b]0;owned\x07"
	op.Task.Subtasks[1].Name = "Stop\x1b[2J\x1b[1;1Hserver\nOK \u202etxet"
	op.Task.Subtasks[2].Name = "更新观察者状态"
	op.Request.Reason = "line one\r\nline two\x00\x9b31m"
	op.Warnings = []string{"\xff\xfe broken"}
	return op
}

func longTask() events.Operation {
	op := testOperation(events.Running)
	at := ago(10 * time.Minute)
	op.Task = &events.Task{ID: 9, Name: "Restart OB cluster", Status: "RUNNING", MovedAt: ago(time.Second)}
	for i := range int64(40) {
		status := "PENDING"
		if i < 25 {
			status = "SUCCESSFUL"
		} else if i == 25 {
			status = "RUNNING"
		}
		s := testSubtask(i+1, "Step "+string(rune('A'+i%26)), status, &at)
		if i > 0 {
			s.Upstreams = []int64{i}
		}
		op.Task.Subtasks = append(op.Task.Subtasks, s)
	}
	op.Task.Subtasks[25].StartedAt = ago(1500 * time.Millisecond)
	return op
}

func TestTree(t *testing.T) {
	t.Parallel()
	waiting := testOperation(events.Waiting)
	waiting.Reason = &events.Reason{Code: "CLUSTER_BUSY", Message: "cluster 1 has 1 of 1 operations under way: restart of server 3 (mfrggzdfmztwq2lknnwg23tpoa)", Until: treeNow.Add(4 * time.Second)}
	rejected := testOperation(events.Rejected)
	rejected.ClusterID, rejected.ServerID = 0, 0
	rejected.Reason = &events.Reason{Code: "INVALID_REQUEST", Message: `"dryrun": unknown field`}
	dryRun := testOperation(events.Succeeded)
	dryRun.Request.DryRun = true
	dryRun.Reason = &events.Reason{Code: "DRY_RUN", Message: "would stop server 2 of cluster 1 now"}
	running := testOperation(events.Running)
	running.Task = chain("SUCCESSFUL", "SUCCESSFUL", "SUCCESSFUL", "RUNNING")
	running.Task.Subtasks[0].Timing = events.TimingObserved
	succeeded := testOperation(events.Succeeded)
	succeeded.Task = allDone()
	succeeded.Duplicates = 1
	stalled := running
	stalledTask := *running.Task
	stalled.Task = &stalledTask
	stalled.Task.StalledAt, stalled.Task.MovedAt = ago(time.Minute), ago(11*time.Minute)
	rolledBack := testOperation(events.Failed)
	rolledBack.Task = allDone()
	rolledBack.Task.Operation = "ROLLBACK"
	rolledBack.Task.Subtasks[2].Operation, rolledBack.Task.Subtasks[3].Operation = "ROLLBACK", "SKIP"
	rolledBack.Error = &events.Error{Code: "ROLLED_BACK", Message: "task 111102 was rolled back in OCP: the stop is undone"}
	rolledBack.Warnings = []string{"first", "second", "third", "attempt 1: the agent that called OCP did not record the answer; adopted task 111102, which OCP started at 2026-11-24T14:03:07Z"}

	for _, test := range []struct {
		name  string
		op    events.Operation
		style style
	}{
		{"accepted", testOperation(events.Accepted), style{width: 80}},
		{"waiting", waiting, style{width: 80}},
		{"rejected", rejected, style{width: 80}},
		{"dry-run", dryRun, style{width: 80}},
		{"running", running, style{width: 80}},
		{"running-spinner", running, style{width: 80, height: 24, spin: true, frame: 3}},
		{"running-colour", running, style{width: 80, color: true}},
		{"running-narrow", running, style{width: 40}},
		{"running-pipe", running, style{}},
		{"stalled", stalled, style{width: 80}},
		{"succeeded", succeeded, style{width: 80}},
		{"failed", failedOperation(), style{width: 80}},
		{"failed-colour", failedOperation(), style{width: 80, color: true}},
		{"failed-narrow", failedOperation(), style{width: 48}},
		{"failed-full", failedOperation(), style{width: 100, full: true}},
		{"rolled-back", rolledBack, style{width: 80}},
		{"branching", branching(), style{width: 80}},
		{"branching-folded", branching(), style{width: 80, height: 11}},
		{"hostile", hostile(), style{width: 80}},
		{"folded", longTask(), style{width: 80, height: 20}},
		{"folded-tiny", longTask(), style{width: 40, height: 8}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			lines := renderTree(test.op, treeNow, test.style)
			for _, l := range lines {
				plain := stripSGR(l)
				if w := textWidth(plain); test.style.width > 0 && w > test.style.width {
					t.Errorf("%d columns wide, at most %d fit: %q", w, test.style.width, plain)
				}
				if strings.ContainsFunc(plain, unicode.IsControl) {
					t.Errorf("control character in %q", plain)
				}
				if strings.TrimRight(plain, " ") != plain {
					t.Errorf("trailing blanks in %q", plain)
				}
			}
			if h := test.style.height; h > 0 && len(lines) > h-1 {
				t.Errorf("%d lines, at most %d fit", len(lines), h-1)
			}
			golden(t, filepath.Join("testdata", "tree", test.name+".txt"), strings.Join(lines, "\n")+"\n")
		})
	}
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s (rewrite with -update)\ngot\n%swant\n%s", path, got, want)
	}
}
