package agent

import (
	"testing"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/events"
)

// Each answer below leaves unknown whether the call arrived. In OCP there must be
// one task in the end, whichever way it was.
func TestAnAnswerThatIsLostLeavesOneTask(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		fault string
		posts int
	}{
		{"server_stop:lose_before,count=1", 2},
		{"server_stop:lose_after,count=1", 1},
		{"server_stop:reset,count=1", 2},
		{"server_stop:reset_after,count=1", 1},
		{"server_stop:truncate,count=1", 1},
		{"server_stop:html,count=1", 2},
		{"server_stop:html_after,count=1", 1},
		{"server_stop:empty_after,count=1", 1},
		{"server_stop:status_after,status=502,count=1", 1},
		{"server_stop:status,status=503,count=1", 2},
		{"server_stop:status,status=429,count=1", 2},
		{"server_stop:delay_after,delay=700ms,count=1", 1},
		{"server_stop:delay,delay=700ms,count=1", 1},
	} {
		t.Run(test.fault, func(t *testing.T) {
			t.Parallel()
			for _, shape := range []ocpsim.Shape{ocpsim.ShapeTasks, ocpsim.ShapeV43} {
				r := newRig(t, ocpsim.Config{Shape: shape, Speed: 50})
				r.fault(test.fault)
				r.agent()
				r.stop("k", 1, 2)
				op := r.awaitEnd("k", events.Succeeded)
				r.wantPosts(test.posts)
				r.wantTasks(1)
				if op.Attempt != test.posts {
					t.Errorf("attempt %d, want %d", op.Attempt, test.posts)
				}
			}
		})
	}
}

// Nor is what OCP says of something else.
func TestAGatewaysNoIsNotOCPs(t *testing.T) {
	t.Parallel()
	for _, fault := range []string{
		"zones_list:html,status=403,count=1", "zones_list:html,status=404,count=1",
		"tasks_list:html,status=403,count=1", "tasks_list:status,status=400,count=1", "tasks_list:status,status=404,count=1",
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, ocpsim.Config{Speed: 100})
			r.fault(fault)
			r.agent()
			r.stop("k", 1, 2)
			if all := r.awaitToken("k", events.Waiting); all[len(all)-1].Reason.Code != events.CodeStaleTopology {
				t.Errorf("waits for %+v, want %s", all[len(all)-1].Reason, events.CodeStaleTopology)
			}
			r.awaitEnd("k", events.Succeeded)
			r.wantPosts(1)
		})
	}
}

func TestARequestThatOCPRefusesFailsWithItsWords(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, fault, code string
		user              int
		status            int
	}{
		{"read-only user", "", events.CodeOCPRefused, 1, 403},
		{"conflict", "server_stop:status,status=409,count=1", events.CodeOCPRefused, 0, 409},
		{"success that is none", "server_stop:not_successful,count=1", events.CodeOCPRefused, 0, 0},
		{"no task viewer", "", events.CodeOutcomeUnknown, 2, 403},
		{"topology refused", "zones_list:status,status=401", events.CodeOCPRefused, 0, 401},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, ocpsim.Config{})
			r.user = ocpsim.DefaultUsers("admin", "secret")[test.user]
			if test.fault != "" {
				r.fault(test.fault)
			}
			r.agent()
			r.stop("k", 1, 2)
			op := r.awaitEnd("k", events.Failed)
			if op.Error == nil || op.Error.Code != test.code || op.Reason.Code != test.code {
				t.Fatalf("error %+v, want code %s", op.Error, test.code)
			}
			if op.Error.TraceID == "" || test.status != 0 && op.Error.HTTPStatus != test.status {
				t.Errorf("error %+v, want HTTP status %d and a trace id", op.Error, test.status)
			}
			r.awaitNoOpenRequests()
		})
	}
}
