package agent

import (
	"testing"
	"time"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/events"
)

// TestATaskIsRecognisedWhateverOCPsClockSays has a call's answer lost after the same
// server was stopped before: by OCP's clock, which is not the agent's, the agent must
// tell the task of this call from that of the one before, also after that clock jumped.
func TestATaskIsRecognisedWhateverOCPsClockSays(t *testing.T) {
	t.Parallel()
	for name, off := range map[string]time.Duration{"ahead": time.Hour, "behind": -time.Hour, "a little ahead": 3 * time.Second} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, ocpsim.Config{Now: func() time.Time { return time.Now().Add(off) }})
			r.agent()
			r.stop("first", 1, 2)
			r.awaitEnd("first", events.Succeeded)
			r.operate(events.Start, "back", 1, 2)
			r.awaitEnd("back", events.Succeeded)
			r.sim.Advance(time.Minute) // its clock jumps; a task of just before could be this call's
			r.fault("server_stop:lose_after,count=1")
			r.stop("lost", 1, 2)
			o := r.awaitEnd("lost", events.Succeeded)
			tasks := r.sim.Tasks()
			if len(tasks) != 3 || o.Task == nil || o.Task.ID != tasks[2].ID {
				t.Errorf("followed task %+v of %d, want the third", o.Task, len(tasks))
			}
		})
	}
}
