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

// foldBy folds a record by operations whose last events are known.
func foldBy(r Record, control Control, known ...events.Operation) Record {
	return r.Fold(func(id string) (Holder, bool) {
		for _, op := range known {
			if op.OperationID == id {
				return HolderOf(op), true
			}
		}
		return Holder{}, false
	}, control)
}

func TestASlotIsItsOperationsUntilTheJournalIsPastIt(t *testing.T) {
	t.Parallel()
	r := Record{Queue: []Ticket{{OperationID: "op", Sequence: 3}, {OperationID: "other", Sequence: 4}}}
	if !r.Take(Slot{OperationID: "op", ServerID: 2, Zone: "zone1", Since: ago(time.Hour), Steps: 4}) || len(r.Active) != 1 || len(r.Queue) != 1 || r.Generation != 1 {
		t.Fatalf("after taking: %+v", r)
	}
	for _, last := range []events.Operation{operation("op", events.Failed, 3), operation("op", events.Waiting, 4), operation("op", events.Running, 9)} {
		if folded := foldBy(r, Control{}, last); len(folded.Active) != 1 || folded.Generation != r.Generation {
			t.Errorf("%s at step %d freed the slot that was taken at step 4", last.State, last.Steps)
		}
	}
	r.Take(Slot{OperationID: "op", ServerID: 2, Zone: "zone1", Since: ago(time.Minute), Steps: 6})
	r.Take(Slot{OperationID: "op", ServerID: 2, Zone: "zone1", Since: ago(time.Minute), Steps: 2})
	if len(r.Active) != 1 || r.Active[0].Steps != 6 {
		t.Errorf("taken by a late agent: %+v, want the later step to stay", r.Active)
	}
	if folded := foldBy(r, Control{}, operation("op", events.Waiting, 7)); len(folded.Active) != 0 || len(folded.Recent) != 0 || folded.Generation != r.Generation+1 {
		t.Errorf("after it waits again: %+v", folded)
	}
	if folded := foldBy(r, Control{}); len(folded.Active) != 1 {
		t.Errorf("nothing is known of its operation: %+v, want the slot held", folded)
	}
}

func TestAnOperationThatHasEndedIsRememberedAndCountedOnce(t *testing.T) {
	t.Parallel()
	var r Record
	under := Control{Revision: 7}
	r.Announce(Ticket{OperationID: "op", ServerID: 2, Sequence: 1})
	r.Take(Slot{OperationID: "op", Kind: events.Stop, ServerID: 2, Zone: "zone1", Since: ago(time.Hour), Steps: 1})
	failed := operation("op", events.Failed, 3)
	r = foldBy(r, under, failed)
	want := Ended{OperationID: "op", Kind: events.Stop, ServerID: 2, Zone: "zone1", Since: ago(time.Hour), At: ago(time.Minute)}
	if len(r.Recent) != 1 || r.Recent[0] != want || r.Failures != 1 || r.FailuresUnder != 7 || r.LastFailure != "op" || len(r.Newest) != 0 {
		t.Fatalf("after a failure: %+v", r)
	}
	refused := operation("op", events.Failed, 4) // a retry that the guard did not allow took no slot
	refused.EndedAt = now
	for _, last := range []events.Operation{failed, refused} {
		if r = foldBy(r, under, last); r.Failures != 1 || len(r.Recent) != 1 || r.Recent[0] != want {
			t.Errorf("an end without a slot counted: %+v", r)
		}
	}
	r.Take(Slot{OperationID: "op", Kind: events.Stop, ServerID: 2, Zone: "zone1", Since: now, Steps: 4})
	again := operation("op", events.Failed, 6)
	again.EndedAt = now
	if r = foldBy(r, under, again); len(r.Recent) != 1 || !r.Recent[0].At.Equal(now) || r.Failures != 2 {
		t.Errorf("after a retry that failed: %+v", r)
	}
}

func TestOperationsThatCalledNothingAreForgotten(t *testing.T) {
	t.Parallel()
	var r Record
	notSubmitted := operation("e", events.Succeeded, 3)
	notSubmitted.Attempt = 0
	ended := []events.Operation{operation("b", events.Cancelled, 3), operation("c", events.Rejected, 3), operation("d", events.Expired, 3), notSubmitted}
	for _, op := range ended {
		r.Take(Slot{OperationID: op.OperationID, Steps: 1})
	}
	if r = foldBy(r, Control{}, ended...); len(r.Active)+len(r.Recent)+r.Failures != 0 {
		t.Errorf("got %+v, want an empty record", r)
	}
}

func TestFailuresInARowEndWithASuccessOrAResume(t *testing.T) {
	t.Parallel()
	end := func(r Record, control Control, id string, state events.State, at time.Time) Record {
		r.Take(Slot{OperationID: id, Steps: 1})
		op := operation(id, state, 3)
		op.EndedAt = at
		return foldBy(r, control, op)
	}
	control := Control{Revision: 7, ChangedAt: ago(time.Hour)}
	r := end(Record{}, control, "a", events.Failed, ago(50*time.Minute))
	r = end(r, control, "b", events.Failed, ago(40*time.Minute))
	if r.Failures != 2 || r.LastFailure != "b" {
		t.Errorf("two in a row: %+v", r)
	}
	resumed := Control{Revision: 8, ChangedAt: ago(30 * time.Minute)}
	if late := end(r, resumed, "c", events.Failed, ago(35*time.Minute)); late.Failures != 0 {
		t.Errorf("a failure from before somebody resumed counts: %+v", late)
	}
	r = end(r, resumed, "d", events.Failed, ago(20*time.Minute))
	if r.Failures != 1 || r.FailuresUnder != 8 || r.LastFailure != "d" {
		t.Errorf("the first failure since somebody resumed: %+v", r)
	}
	if r = end(r, resumed, "e", events.Succeeded, ago(10*time.Minute)); r.Failures != 0 || r.LastFailure != "" {
		t.Errorf("after a success: %+v", r)
	}
	// Ends that are heard of together count in the order in which they came.
	r.Take(Slot{OperationID: "f", Steps: 1})
	r.Take(Slot{OperationID: "g", Steps: 1})
	failed, succeeded := operation("f", events.Failed, 3), operation("g", events.Succeeded, 3)
	failed.EndedAt, succeeded.EndedAt = ago(time.Minute), ago(2*time.Minute)
	if r = foldBy(r, resumed, failed, succeeded); r.Failures != 1 || len(r.Recent) != 6 || r.Recent[4].OperationID != "g" {
		t.Errorf("a failure behind a success: %+v", r)
	}
}

func TestTheQueueKeepsTheFirstRequests(t *testing.T) {
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
	if len(f.Taken) != 2 || f.Prune(now, time.Hour) || !f.Prune(now, 30*time.Second) || len(f.Taken) != 1 {
		t.Errorf("the fleet: %+v", f)
	}
}

func TestASlotIsFreeAndATicketVoidOnceTheJournalSaysSo(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name         string
		last         events.Operation
		held, queued bool
	}{
		{"no such operation", events.Operation{}, false, false},
		{"accepted", operation("op", events.Accepted, 1), true, true},
		{"waits since before", operation("op", events.Waiting, 2), true, true},
		{"waits since", operation("op", events.Waiting, 3), false, true},
		{"under way", operation("op", events.Submitting, 3), true, false},
		{"running", operation("op", events.Running, 9), true, false},
		{"ended since", operation("op", events.Failed, 3), false, false},
		{"ended before it is retried", operation("op", events.Failed, 1), true, false},
		{"taken by an agent that did not know of the end", operation("op", events.Cancelled, 2), false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			slot, queue := Record{Active: []Slot{{OperationID: "op", Steps: 2}}}, Record{Queue: []Ticket{{OperationID: "op"}}}
			last := func(string) (Holder, bool) { return HolderOf(c.last), true }
			if got := len(slot.Fold(last, Control{}).Active) == 1; got != c.held {
				t.Errorf("slot is held: %t", got)
			}
			if got := len(queue.Fold(last, Control{}).Queue) == 1; got != c.queued {
				t.Errorf("ticket is valid: %t", got)
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
			switch rapid.IntRange(0, 7).Draw(t, "method") {
			case 0:
				changed = r.Take(Slot{OperationID: op.OperationID, ServerID: op.ServerID, Steps: step})
			case 1:
				r = foldBy(r, Control{Revision: uint64(step / 20)}, op)
				is, _ := json.Marshal([]any{r, f})
				changed = string(is) != string(was)
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
