package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/obwarden/obwarden/agent/alerts"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/agent/operation"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
)

// wantQuiet fails where something that is counted happens more than most times in a second.
func wantQuiet(t *testing.T, what string, most int, count func() int) {
	t.Helper()
	before := count()
	time.Sleep(time.Second) // nothing is to happen: there is no signal to wait for
	if n := count() - before; n > most {
		t.Errorf("%s: %d times within a second, want %d at most", what, n, most)
	}
}

func TestAnOperationThatWaitsForItsRecordRests(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.setUpBuckets()
	if _, err := r.recordBucket().Put(t.Context(), "1", []byte("garbage")); err != nil {
		t.Fatal(err)
	}
	r.agent()
	r.stop("k", 1, 2)
	r.awaitReason("k", events.CodeRecordUnreadable)
	decisions := r.metrics.GuardDecisions.WithLabelValues("wait", events.CodeRecordUnreadable)
	wantQuiet(t, "decisions", 3, func() int { return int(testutil.ToFloat64(decisions)) })
}

func TestAnOperationThatWaitsForItsSilencesRests(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	alertmanager := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(alertmanager.Close)
	r := newRig(t, ocpsim.Config{})
	r.agent()
	inForce := &policy.Policy{Silence: &policy.SilenceRule{Wait: true}}
	silencer, err := alerts.NewSilencer(alerts.SilencerConfig{
		URL: alertmanager.URL, Directory: r.latest.Directory, Policy: func() *policy.Policy { return inForce },
		Metrics: r.metrics, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	r.latest.Silencer = silencer // before the first request
	r.stop("k", 1, 2)
	r.awaitReason("k", events.CodeAlertmanagerUnreachable)
	eventually(t, "it has asked twice", func() bool { return asked.Load() > 1 })
	wantQuiet(t, "questions to Alertmanager", 6, func() int { return int(asked.Load()) })
}

// Somebody resumes the cluster between the decision to wait for that and the event that says so.
func TestAResumeDuringADecisionIsNotLost(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.setUpBuckets()
	r.setPause(1, true)
	r.agent()
	a := r.latest
	decide := a.stages[operation.Decide]
	resumed := make(chan struct{})
	a.stages[operation.Decide] = func(a *Agent, ctx context.Context, h *held) (operation.Input, error) {
		in, err := decide(a, ctx, h)
		select {
		case <-resumed:
		default:
			before := a.generation.Load()
			r.setPause(1, false)
			eventually(t, "the agent hears of it", func() bool { return a.generation.Load() > before })
			time.Sleep(20 * time.Millisecond) // and wakes those that wait
			close(resumed)
		}
		return in, err
	}
	r.stop("k", 1, 2)
	<-resumed
	id := events.OperationID("k")
	r.awaitFor(5*time.Second, "the end of k", func(e events.Event) bool { return e.OperationID == id && e.Token == events.Succeeded })
}

// More tickets than are looked at in one decision belong to operations that are over, and nobody writes the record.
func TestAQueueOfOperationsThatAreOverHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.setUpBuckets()
	r.setPause(1, true)
	stop := r.agent()
	const over = 5
	for i := range over + 1 {
		r.stop(fmt.Sprint("k", i), 1, int64(i+1))
		r.awaitReason(fmt.Sprint("k", i), events.CodePaused)
	}
	for i := range over {
		r.publish(fmt.Sprintf("ob.server.stop.cancel.%s.1.%d", events.OperationID(fmt.Sprint("k", i)), i+1), "{}")
		r.awaitEnd(fmt.Sprint("k", i), events.Cancelled)
	}
	stop()
	r.setPause(1, false)
	r.agent()
	id := events.OperationID(fmt.Sprint("k", over))
	r.awaitFor(12*time.Second, "the end of the last", func(e events.Event) bool { return e.OperationID == id && e.Token == events.Succeeded })
}

func TestMailDoesNotWaitForAPlaceToLook(t *testing.T) {
	t.Parallel()
	hold, did := make(chan struct{}), make(chan lane, 10)
	q := newQueue(nil)
	q.work = func(id string, l lane, _ bool) turn {
		if id != "mail" {
			<-hold
			return turn{over: true}
		}
		select {
		case did <- l:
		default:
		}
		return turn{at: time.Now().Add(time.Hour), lane: looking}
	}
	q.addAt("mail", time.Time{})
	<-did
	eventually(t, "it rests", func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return q.items["mail"].state == resting
	})
	q.mu.Lock()
	for i := range maxWorkers { // every place to look is taken
		it := &item{id: fmt.Sprint(i), lane: looking}
		q.items[it.id] = it
		q.rest(it, time.Time{})
	}
	q.mu.Unlock()
	q.addAt("mail", time.Time{})
	select {
	case <-did:
	case <-time.After(2 * time.Second):
		t.Error("mail waits for a place to look")
	}
	close(hold)
	q.close()
}

// Messages come while the agent shuts down: each is in an inbox then and handed back from there, or refused.
func TestAMessageThatComesWhileTheRosterClosesIsHandedBack(t *testing.T) {
	t.Parallel()
	const senders, each = 8, 2000
	r, refused := newRoster(), atomic.Int64{}
	var sending sync.WaitGroup
	for s := range senders {
		sending.Go(func() {
			for i := range each {
				if _, ok := r.deliver(fmt.Sprint(s, ".", i), delivery{}, time.Now()); !ok {
					refused.Add(1)
				}
			}
		})
	}
	eventually(t, "some have come", func() bool { return len(r.acks()) > 100 })
	kept := 0
	for _, acks := range r.close() {
		kept += len(acks)
	}
	sending.Wait()
	if all := kept + int(refused.Load()); all != senders*each {
		t.Errorf("%d of %d messages are handed back", all, senders*each)
	}
}

// The journal's stream is gone, and the watch of it tries to begin anew, with pauses.
func TestAnAgentWhoseJournalIsGoneEndsInTime(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	stop := r.agent()
	r.stop("k", 1, 2)
	r.awaitEnd("k", events.Succeeded)
	r.awaitNoOpenRequests()
	if err := r.js.DeleteStream(t.Context(), events.OperationStream); err != nil {
		t.Fatal(err)
	}
	time.Sleep(4 * time.Second) // it tells nobody that it pauses, for longer each time
	began := time.Now()
	stop()
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("took %s to end, want less than 2 s", took)
	}
	r.setUpBuckets() // so that the watch ends, too
	time.Sleep(4 * time.Second)
}
