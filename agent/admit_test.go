package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/events"
)

func TestBadRequestsAreRejectedAndTheNextGoodOneRuns(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.agent()
	long := strings.Repeat("x", 70<<10)
	var labels []string
	for i := range 33 {
		labels = append(labels, fmt.Sprintf(`"l%d":"v"`, i))
	}
	bad := []struct{ subject, body, want string }{
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":2,"dry_runn":true}`, "dry_runn"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":2,"Dry_Run":true}`, "Dry_Run"},
		{"ob.server.stop.request", `{"cluster_id":1,"cluster_id":1,"server_id":2}`, "cluster_id"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":2} {}`, "behind the end"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":2`, "EOF"},
		{"ob.server.stop.request", ``, "empty"},
		{"ob.server.stop.request", `[]`, "object"},
		{"ob.server.stop.request", `null`, "object"},
		{"ob.server.stop.request", `{"cluster_id":1.5,"server_id":2}`, "cluster_id"},
		{"ob.server.stop.request", `{"cluster_id":"1","server_id":2}`, "cluster_id"},
		{"ob.server.stop.request", `{"cluster_id":0,"server_id":2}`, "cluster_id"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":-2}`, "server_id"},
		{"ob.server.stop.request", `{"cluster_id":1}`, "server_id"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":99999999999999999999}`, "server_id"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":2,"force":null}`, "force"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":2,"expires_at":"tomorrow"}`, "expires_at"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":2,"idempotency_key":""}`, "idempotency_key"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":2,"idempotency_key":"a\u0000b"}`, "idempotency_key"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":2,"idempotency_key":"` + strings.Repeat("k", 257) + `"}`, "idempotency_key"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":2,"reason":"` + strings.Repeat("r", 1025) + `"}`, "reason"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":2,"labels":{` + strings.Join(labels, ",") + `}}`, "labels"},
		{"ob.server.stop.request", `{"cluster_id":1,"server_id":2,"reason":"` + long + `"}`, "65536"},
		{"ob.server.stop.request", "{\"cluster_id\":1,\"server_id\":2,\"reason\":\"\xff\"}", "UTF-8"},
		{"ob.server.stop.request.1.3", `{"cluster_id":1,"server_id":2}`, "server_id"},
		{"ob.server.stop.request.1", `{"cluster_id":1,"server_id":2}`, "subject"},
		{"ob.server.stop.request.one.two", `{}`, "subject"},
		{"ob.server.stopp.request", `{"cluster_id":1,"server_id":2}`, "kind"},
		{"ob.server.stop.request", `{"specversion":"0.3","id":"i","source":"s","type":"t","data":{"cluster_id":1,"server_id":2}}`, "specversion"},
	}
	for _, b := range bad {
		sequence := r.publish(b.subject, b.body)
		all := r.await("rejection of "+b.want, func(e events.Event) bool { return e.RequestSequence == sequence })
		op := all[len(all)-1]
		if op.State != events.Rejected || op.Reason.Code != events.CodeInvalidRequest || !strings.Contains(op.Reason.Message, b.want) {
			t.Errorf("%.80s on %s: %s %+v, want rejected with %q", b.body, b.subject, op.State, op.Reason, b.want)
		}
	}
	r.stop("good", 1, 2)
	r.awaitEnd("good", events.Succeeded)
	r.wantPosts(1)
	r.awaitNoOpenRequests()
	rejected := testutil.ToFloat64(r.metrics.Requests.WithLabelValues("stop", "nats", "rejected")) +
		testutil.ToFloat64(r.metrics.Requests.WithLabelValues("stop", "cloudevent", "rejected")) +
		testutil.ToFloat64(r.metrics.Requests.WithLabelValues("unknown", "nats", "rejected"))
	if int(rejected) != len(bad) {
		t.Errorf("requests_total{result=rejected} = %v, want %d", rejected, len(bad))
	}
}

func TestDuplicatesAreRecordedAndCallNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 100})
	r.ackWait = time.Minute // none is delivered again and counts twice, however slow the machine is
	r.agent()
	for range 20 {
		r.stop("k", 1, 2)
	}
	r.awaitEndAmongDuplicates("k")
	r.awaitNoOpenRequests()
	r.stop("k", 1, 2)
	last := r.await("20 duplicates", func(e events.Event) bool { return e.Duplicates == 20 })
	for i, e := range last {
		if e.N != i+1 {
			t.Errorf("event %d has number %d", i+1, e.N)
		}
	}
	if op := last[len(last)-1]; op.Token != events.Duplicate || op.State != events.Succeeded {
		t.Errorf("last event is %s, state %s, want a duplicate of a success", op.Token, op.State)
	}
	r.wantPosts(1)
}

// The journal has room for others in a storm of duplicates, each of which counts.
func TestAStormOfDuplicatesIsRecordedOnceASecond(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 100})
	r.ackWait = time.Minute // none is delivered again and counts twice, however slow the machine is
	r.agent()
	r.stop("k", 1, 2)
	r.awaitEndAmongDuplicates("k")
	const storm = 200
	began := time.Now()
	for range storm { // each is flushed: they come one after the other
		r.stop("k", 1, 2)
	}
	all := r.await("all duplicates", func(e events.Event) bool { return e.Duplicates == storm })
	recorded := 0
	for _, e := range all {
		if e.Token == events.Duplicate {
			recorded++
		}
	}
	if most := 2 + int(time.Since(began)/duplicatesEvery); recorded > most {
		t.Errorf("%d duplicates were recorded in %d events, want %d at most", storm, recorded, most)
	}
	r.awaitNoOpenRequests()
}

func (r *rig) awaitEndAmongDuplicates(key string) {
	r.t.Helper()
	r.await("the end of "+key, func(e events.Event) bool {
		return e.OperationID == events.OperationID(key) && e.Token == events.Succeeded
	})
}

func TestAKeyUsedForOtherContentIsRejectedAndTheOperationStays(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.agent()
	r.stop("k", 1, 2)
	r.awaitEnd("k", events.Succeeded)
	sequence := r.publish("ob.server.stop.request", `{"idempotency_key":"k","cluster_id":1,"server_id":3}`)
	all := r.await("rejection", func(e events.Event) bool { return e.RequestSequence == sequence })
	if op := all[0]; op.State != events.Rejected || op.Reason.Code != events.CodeKeyReused || op.IdempotencyKey != "k" || op.OperationID == events.OperationID("k") {
		t.Errorf("got %s %+v for key %s, operation %s", op.State, op.Reason, op.IdempotencyKey, op.OperationID)
	}
	r.wantPosts(1)
	r.awaitNoOpenRequests()
}

func TestTheKeyIsTheFirstThatIsThere(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.agent()
	body := `{"cluster_id":1,"server_id":2,"dry_run":true}`
	r.publish("ob.server.stop.request", body, "Idempotency-Key", "from header", "Nats-Msg-Id", "id")
	r.publish("ob.server.stop.request", body, "Nats-Msg-Id", "from id")
	r.publish("ob.server.stop.request", body, "ce-specversion", "1.0", "ce-id", "from event", "ce-source", "/x", "ce-type", "t")
	r.publish("ob.server.stop.request.1.2", `{"specversion":"1.0","id":"from structured","source":"/x","type":"t","data":{"dry_run":true}}`, "content-type", "application/cloudevents+json")
	for _, key := range []string{"from header", "from id", "from event", "from structured"} {
		if op := r.awaitEnd(key, events.Succeeded); op.Reason.Code != events.CodeDryRun {
			t.Errorf("%s: %+v, want %s", key, op.Reason, events.CodeDryRun)
		}
	}
	sequence := r.publish("ob.server.stop.request", body)
	all := r.await("keyless", func(e events.Event) bool { return e.RequestSequence == sequence && e.State == events.Succeeded })
	if key := all[0].IdempotencyKey; !strings.HasPrefix(key, fmt.Sprintf("OB_REQUESTS/%d@", sequence)) {
		t.Errorf("key %q of a request without one", key)
	}
	r.wantPosts(0)
}
