package guard

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/obwarden/obwarden/events"
)

func operation(id string, state events.State, steps int) events.Operation {
	return events.Operation{
		OperationID: id, N: steps, Steps: steps, State: state, Attempt: 1, Kind: events.Stop, ClusterID: 1, ServerID: 2,
		SubmittedAt: ago(2 * time.Minute), EndedAt: ago(time.Minute),
	}
}

func TestASlotIsItsOperationsUntilTheJournalIsPastIt(t *testing.T) {
	t.Parallel()
	r := Record{Queue: []Ticket{{OperationID: "op", Sequence: 3}, {OperationID: "other", Sequence: 4}}}
	if !r.Take(Slot{OperationID: "op", ServerID: 2, Zone: "zone1", Since: ago(time.Hour), Steps: 4}) || len(r.Active) != 1 || len(r.Queue) != 1 || r.Generation != 1 {
		t.Fatalf("after taking: %+v", r)
	}
	if r.Give(operation("op", events.Failed, 3), 0, now) || r.Give(operation("op", events.Waiting, 4), 0, now) || len(r.Active) != 1 {
		t.Error("who gives back late took a slot that was taken since")
	}
	r.Take(Slot{OperationID: "op", ServerID: 2, Zone: "zone1", Since: ago(time.Minute), Steps: 6})
	r.Take(Slot{OperationID: "op", ServerID: 2, Zone: "zone1", Since: ago(time.Minute), Steps: 2})
	if len(r.Active) != 1 || r.Active[0].Steps != 6 {
		t.Errorf("taken by a late agent: %+v, want the later step to stay", r.Active)
	}
	if generation := r.Generation; !r.Give(operation("op", events.Waiting, 7), 0, now) || len(r.Active) != 0 || len(r.Recent) != 0 || r.Generation != generation+1 {
		t.Errorf("after it waits again: %+v", r)
	}
	if r.Give(operation("op", events.Waiting, 7), 0, now) {
		t.Error("there was nothing left to give back")
	}
}

func TestASlotThatWasTakenAnewIsNotDropped(t *testing.T) {
	t.Parallel()
	var r Record
	seen := Slot{OperationID: "op", ServerID: 2, Since: ago(time.Minute), Steps: 1}
	r.Take(seen)
	r.Take(Slot{OperationID: "op", ServerID: 2, Since: ago(time.Second), Steps: 1})
	if r.Drop(seen) || len(r.Active) != 1 {
		t.Errorf("got %+v, want the slot that was taken anew", r.Active)
	}
	if !r.Drop(r.Active[0]) || len(r.Active) > 0 {
		t.Errorf("got %+v, want no slot", r.Active)
	}
}

func TestWhatHasEndedIsRememberedAndCountedOnce(t *testing.T) {
	t.Parallel()
	var r Record
	r.Announce(Ticket{OperationID: "op", ServerID: 2, Sequence: 1})
	r.Take(Slot{OperationID: "op", Kind: events.Stop, ServerID: 2, Zone: "zone1", Since: ago(time.Hour), Steps: 1})
	failed := operation("op", events.Failed, 3)
	r.Give(failed, 7, now)
	want := Ended{OperationID: "op", Kind: events.Stop, ServerID: 2, Zone: "zone1", Since: ago(time.Hour), At: ago(time.Minute)}
	if len(r.Recent) != 1 || r.Recent[0] != want || r.Failures != 1 || r.FailuresUnder != 7 || r.LastFailure != "op" || len(r.Newest) != 0 {
		t.Fatalf("after a failure: %+v", r)
	}
	if r.Give(failed, 7, now) || r.Failures != 1 || len(r.Recent) != 1 {
		t.Errorf("the same end counted twice: %+v", r)
	}
	refused := operation("op", events.Failed, 4) // a retry that the guard did not allow: no slot
	if refused.EndedAt = now; r.Give(refused, 7, now) || r.Failures != 1 {
		t.Errorf("a retry that was not done counted: %+v", r)
	}
	r.Take(Slot{OperationID: "op", Kind: events.Stop, ServerID: 2, Zone: "zone1", Since: now, Steps: 4})
	again := operation("op", events.Failed, 6)
	again.EndedAt = now
	if r.Give(again, 7, now); len(r.Recent) != 1 || !r.Recent[0].At.Equal(now) || r.Failures != 2 {
		t.Errorf("after a retry that failed: %+v", r)
	}
	if r.Give(operation("b", events.Cancelled, 3), 7, now) || r.Give(operation("c", events.Rejected, 3), 7, now) || r.Give(operation("d", events.Expired, 3), 7, now) {
		t.Errorf("what was not done is remembered: %+v", r)
	}
	notSubmitted := operation("e", events.Succeeded, 3)
	if notSubmitted.Attempt = 0; r.Give(notSubmitted, 7, now) || r.Failures != 2 {
		t.Errorf("what needed no call is remembered: %+v", r)
	}
	// The slot was dropped as stale before: what is known of it comes from the journal.
	if r.Give(operation("f", events.Failed, 3), 8, now); r.Failures != 1 || r.FailuresUnder != 8 || r.LastFailure != "f" {
		t.Errorf("a failure after somebody resumed the cluster: %+v", r)
	}
	if r.Give(operation("g", events.Succeeded, 3), 8, now); r.Failures != 0 || r.LastFailure != "" || len(r.Recent) != 3 {
		t.Errorf("after a success: %+v", r)
	}
}

func TestTheQueueKeepsWhoCameFirst(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var r Record
		first := map[uint64]bool{}
		for _, n := range rapid.SliceOfNDistinct(rapid.Uint64Range(1, 1000), 0, 200, rapid.ID).Draw(t, "sequences") {
			r.Enqueue(Ticket{OperationID: fmt.Sprint(n), Sequence: n})
			first[n] = true
		}
		lower := func(n uint64) (count int) {
			for other := range first {
				if other < n {
					count++
				}
			}
			return count
		}
		if len(r.Queue) != min(len(first), MaxQueue) {
			t.Fatalf("%d tickets of %d requests", len(r.Queue), len(first))
		}
		for i, ticket := range r.Queue {
			if lower(ticket.Sequence) != i {
				t.Fatalf("place %d has sequence %d, which %d came before", i, ticket.Sequence, lower(ticket.Sequence))
			}
			if r.Enqueue(ticket) {
				t.Fatal("a ticket that is there changed the queue")
			}
		}
	})
	r := Record{}
	r.Enqueue(Ticket{OperationID: "a", Sequence: 5})
	if !r.Enqueue(Ticket{OperationID: "a", Sequence: 7}) || len(r.Queue) != 1 || !r.Dequeue("a") || r.Dequeue("a") {
		t.Errorf("a request that was sent again: %+v", r.Queue)
	}
}

func TestTheNewestRequestForAServerIsAnnounced(t *testing.T) {
	t.Parallel()
	var r Record
	if !r.Announce(Ticket{"b", events.Stop, 2, 5}) || r.Announce(Ticket{"a", events.Stop, 2, 4}) || r.Announce(Ticket{"b", events.Stop, 2, 5}) || !r.Announce(Ticket{"c", events.Stop, 3, 1}) {
		t.Errorf("got %+v", r.Newest)
	}
	if r.Newest[2].OperationID != "b" || r.Newest[3].OperationID != "c" {
		t.Errorf("got %+v", r.Newest)
	}
}

func TestOldHistoryIsPruned(t *testing.T) {
	t.Parallel()
	var r Record
	for i := range MaxRecent + 10 {
		r.Recent = append(r.Recent, Ended{OperationID: fmt.Sprint(i), At: ago(time.Duration(MaxRecent+10-i) * time.Second)})
	}
	if !r.Prune(now, time.Hour) || len(r.Recent) != MaxRecent || r.Recent[0].OperationID != "10" {
		t.Errorf("%d are left, from %s", len(r.Recent), r.Recent[0].OperationID)
	}
	if r.Prune(now, time.Hour) || !r.Prune(now, time.Minute) || len(r.Recent) != 60 {
		t.Errorf("%d are left of the last minute", len(r.Recent))
	}
	var f Fleet
	f.Take("a", ago(2*time.Hour))
	f.Take("b", ago(time.Minute))
	f.Take("a", ago(time.Second))
	if len(f.Taken) != 2 || f.Prune(now, time.Hour) || !f.Prune(now, 30*time.Second) || len(f.Taken) != 1 || !f.Give("a") || f.Give("a") {
		t.Errorf("the fleet: %+v", f)
	}
}

func TestWhatIsLeftOver(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name         string
		last         events.Operation
		slot, ticket bool
	}{
		{"no such operation", events.Operation{}, true, true},
		{"accepted", operation("op", events.Accepted, 1), false, false},
		{"waits since before", operation("op", events.Waiting, 2), false, false},
		{"waits since", operation("op", events.Waiting, 3), true, false},
		{"under way", operation("op", events.Submitting, 3), false, true},
		{"running", operation("op", events.Running, 9), false, true},
		{"ended since", operation("op", events.Failed, 3), true, true},
		{"ended before it is retried", operation("op", events.Failed, 1), false, true},
		{"taken by who knew that it had ended", operation("op", events.Cancelled, 2), true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got := (Slot{Steps: 2}).Stale(c.last); got != c.slot {
				t.Errorf("slot is left over: %t", got)
			}
			if got := (Ticket{}).Stale(c.last); got != c.ticket {
				t.Errorf("ticket is left over: %t", got)
			}
		})
	}
}

// Agents try a change on a copy and throw it away where another was faster.
func TestMethodsOfARecordLeaveItsCopiesAlone(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var r Record
		var f Fleet
		id := rapid.SampledFrom([]string{"a", "b", "c"})
		for step := range 60 {
			before, fleet := r, f
			was, _ := json.Marshal([]any{before, fleet})
			op := operation(id.Draw(t, "operation"), rapid.SampledFrom(events.States()).Draw(t, "state"), step+1)
			op.ServerID = rapid.Int64Range(1, 3).Draw(t, "server")
			changed := false
			switch rapid.IntRange(0, 8).Draw(t, "method") {
			case 0:
				changed = r.Take(Slot{OperationID: op.OperationID, ServerID: op.ServerID, Steps: step})
			case 1:
				changed = r.Give(op, uint64(step/20), now)
			case 2:
				changed = r.Enqueue(Ticket{op.OperationID, op.Kind, op.ServerID, uint64(step)})
			case 3:
				changed = r.Dequeue(op.OperationID)
			case 4:
				changed = r.Announce(Ticket{op.OperationID, op.Kind, op.ServerID, uint64(step)})
			case 5:
				changed = r.Prune(now, rapid.SampledFrom([]time.Duration{time.Second, time.Hour}).Draw(t, "keep"))
			case 6:
				changed = f.Take(op.OperationID, now)
			case 7:
				changed = f.Give(op.OperationID)
			case 8:
				changed = f.Prune(now.Add(time.Second), rapid.SampledFrom([]time.Duration{0, time.Hour}).Draw(t, "keep"))
			}
			if is, _ := json.Marshal([]any{before, fleet}); string(is) != string(was) {
				t.Fatalf("the copy was\n%s, is\n%s", was, is)
			}
			if is, _ := json.Marshal([]any{r, f}); (string(is) != string(was)) != changed {
				t.Fatalf("says that it changed: %t, was\n%s, is\n%s", changed, was, is)
			}
		}
	})
}
