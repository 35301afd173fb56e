package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/obwarden/obwarden/agent/guard"
	"github.com/obwarden/obwarden/agent/journal"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/agent/operation"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
)

// defaultLimits are those of a careful policy, without waiting times.
func defaultLimits() policy.Limits {
	return policy.Limits{MaxConcurrent: 1, KeepZones: policy.Majority, OneZoneAtATime: true, KeepRootServer: true}
}

func (r *rig) awaitReason(key, code string) events.Operation {
	r.t.Helper()
	id := events.OperationID(key)
	seen := r.await(key+" with "+code, func(e events.Event) bool { return e.OperationID == id && e.Reason != nil && e.Reason.Code == code })
	return seen[len(seen)-1].Operation
}

func (r *rig) setPause(cluster int64, paused bool) {
	r.t.Helper()
	bucket, err := r.js.KeyValue(r.t.Context(), events.ControlBucket)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := events.SetPause(r.t.Context(), bucket, cluster, events.Pause{Paused: paused, By: "ann", Reason: "racks", At: time.Now()}); err != nil {
		r.t.Fatal(err)
	}
}

// record is the record of a cluster as an agent reads it that knows every event.
func (r *rig) record(cluster int64) guard.Record {
	r.t.Helper()
	record := r.writtenRecord(cluster)
	stream, err := r.js.Stream(r.t.Context(), events.OperationStream)
	if err != nil {
		r.t.Fatal(err)
	}
	return record.Fold(func(id string) (guard.Holder, bool) {
		last, err := journal.Last(r.t.Context(), stream, id)
		if err != nil {
			r.t.Fatal(err)
		}
		return guard.HolderOf(last.Operation), true
	}, guard.Control{})
}

// writtenRecord is the record of a cluster as it stands in the bucket.
func (r *rig) writtenRecord(cluster int64) (record guard.Record) {
	r.t.Helper()
	entry, err := r.recordBucket().Get(r.t.Context(), fmt.Sprint(cluster))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return record
	}
	if err == nil {
		err = json.Unmarshal(entry.Value(), &record)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return record
}

// changeRecord writes a record as another agent would.
func (r *rig) changeRecord(cluster int64, change func(*guard.Record)) {
	r.t.Helper()
	record := r.writtenRecord(cluster)
	change(&record)
	value, err := json.Marshal(record)
	if err == nil {
		_, err = r.recordBucket().Put(r.t.Context(), fmt.Sprint(cluster), value)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) recordBucket() jetstream.KeyValue {
	r.t.Helper()
	bucket, err := r.js.KeyValue(r.t.Context(), events.ClusterBucket)
	if err != nil {
		r.t.Fatal(err)
	}
	return bucket
}

func TestAStopThatCostsTheMajorityIsRejectedWithoutACall(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.policy = &policy.Policy{Hash: "strict", Limits: defaultLimits()}
	if err := r.sim.SetServer(1, 3, "UNAVAILABLE", "INACTIVE"); err != nil {
		t.Fatal(err)
	}
	r.agent()
	r.stop("k", 1, 1) // server 3 is in another zone
	op := r.awaitEnd("k", events.Rejected)
	if op.Reason.Code != events.CodeMajorityAtRisk || op.Policy != "strict" {
		t.Errorf("got %+v by policy %q, want %s by strict", op.Reason, op.Policy, events.CodeMajorityAtRisk)
	}
	r.wantPosts(0)
}

func TestAStopOfAStoppedServerSucceedsWithoutACall(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.agent()
	r.stop("first", 1, 2)
	r.awaitEnd("first", events.Succeeded)
	r.stop("again", 1, 2)
	if op := r.awaitEnd("again", events.Succeeded); op.Reason == nil || op.Reason.Code != events.CodeAlreadyStopped || op.Task != nil {
		t.Errorf("got %+v, want %s without a task", op.Reason, events.CodeAlreadyStopped)
	}
	r.operate(events.Start, "up", 1, 3)
	if op := r.awaitEnd("up", events.Succeeded); op.Reason == nil || op.Reason.Code != events.CodeAlreadyRunning {
		t.Errorf("got %+v, want %s", op.Reason, events.CodeAlreadyRunning)
	}
	r.wantPosts(1)
}

// What somebody does in OCP by hand counts as much as what the agent does.
func TestATaskThatSomebodyElseStartedMakesTheClusterBusy(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 20})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/api/v2/ob/clusters/1/servers/2/restart", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth(r.user.Name, r.user.Password)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Fatalf("restart by hand: %s", res.Status)
	}
	r.agent()
	r.stop("other", 1, 3)
	if op := r.awaitToken("other", events.Waiting); op[len(op)-1].Reason.Code != events.CodeClusterBusy {
		t.Errorf("waits for %+v, want %s", op[len(op)-1].Reason, events.CodeClusterBusy)
	}
	r.awaitEnd("other", events.Succeeded)
	if tasks := r.sim.Tasks(); tasks[1].StartTime.Before(tasks[0].FinishTime) {
		t.Error("stopped a server while another was being restarted by hand")
	}
}

func TestPausedOperationsWaitUntilSomebodyResumes(t *testing.T) {
	t.Parallel()
	for name, paused := range map[string]int64{"the cluster": 1, "all clusters": events.AllClusters} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, ocpsim.Config{})
			r.setUpBuckets()
			r.setPause(paused, true) // nobody runs: it holds all the same
			r.stop("k", 1, 2)
			r.agent()
			op := r.awaitReason("k", events.CodePaused)
			if !strings.Contains(op.Reason.Message, "ann") || !strings.Contains(op.Reason.Message, "racks") {
				t.Errorf("%q does not say who and why", op.Reason.Message)
			}
			r.wantPosts(0)
			r.setPause(paused, false)
			r.awaitEnd("k", events.Succeeded)
			r.wantPosts(1)
		})
	}
}

func TestForceNeedsTheWordOfAnotherPerson(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.agent()
	r.publish("ob.server.stop.request", `{"idempotency_key":"k","cluster_id":1,"server_id":2,"force":true,"requested_by":"me"}`)
	r.awaitReason("k", events.CodeNeedsApproval)
	r.order(events.Approve, "k", 2) // by "me": its own word
	approved := r.awaitToken("k", events.Approved)
	if a := approved[len(approved)-1].Approvals; len(a) != 1 || a[0].Refused == "" {
		t.Errorf("got %+v, want a refusal of who asked", a)
	}
	r.wantPosts(0)
	op := approved[len(approved)-1].Operation
	order := events.OrderTo(events.Approve, op)
	order.RequestedBy, order.Reason = "ann", "seen"
	if _, err := order.Publish(t.Context(), r.js); err != nil {
		t.Fatal(err)
	}
	end := r.awaitEnd("k", events.Succeeded)
	if len(end.Approvals) != 2 || end.Approvals[1].By != "ann" || end.Approvals[1].Refused != "" {
		t.Errorf("got %+v, want ann's word", end.Approvals)
	}
	r.wantPosts(1)
	for _, token := range []events.State{events.Approved, events.Submitting} {
		r.awaitToken("k", token)
	}
}

func TestFailuresInARowHoldTheClusterBackUntilSomebodyResumes(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.policy = laxPolicy()
	r.policy.Limits.PauseAfterFailures = 2
	r.fault("server_stop:status,status=400,count=2")
	r.agent()
	for i := range 2 {
		r.stop(fmt.Sprint("bad", i), 1, 2)
		r.awaitEnd(fmt.Sprint("bad", i), events.Failed)
	}
	r.stop("k", 1, 2)
	if op := r.awaitReason("k", events.CodeFailing); !strings.Contains(op.Reason.Message, "obwarden resume 1") {
		t.Errorf("%q does not say how to lift it", op.Reason.Message)
	}
	r.setPause(1, false)
	r.awaitEnd("k", events.Succeeded)
	r.wantPosts(3)
}

func TestADryRunSaysWhatEachRuleSays(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.policy = &policy.Policy{Hash: "strict", Limits: defaultLimits()}
	r.agent()
	r.publish("ob.server.stop.request", `{"idempotency_key":"k","cluster_id":1,"server_id":2,"dry_run":true}`)
	op := r.awaitEnd("k", events.Succeeded)
	var rules []string
	for _, f := range op.Decision {
		rules = append(rules, f.Rule)
		if f.Verdict != string(guard.Allow) || f.Message == "" {
			t.Errorf("got %+v, want consent with what it rests on", f)
		}
	}
	if !slices.Contains(rules, "majority") || op.Policy != "strict" {
		t.Errorf("got rules %v by policy %q", rules, op.Policy)
	}
	r.wantPosts(0)
	if record := r.record(1); len(record.Active)+len(record.Queue) > 0 {
		t.Errorf("a dry run left %+v", record)
	}
}

func TestALoadedPolicyDecidesOnWaitingOperations(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.policy = laxPolicy()
	r.policy.Limits.Cooldown.Server = time.Hour
	r.agent()
	r.operate(events.Restart, "first", 1, 2)
	r.awaitEnd("first", events.Succeeded)
	r.operate(events.Restart, "second", 1, 2)
	r.awaitReason("second", events.CodeCooldown)
	r.latest.Policy.Set(laxPolicy())
	r.awaitEnd("second", events.Succeeded)
	r.wantPosts(2)
}

// An operation that waits does not delay others, even if the record was written before it began to wait.
func TestAnOperationThatWaitsHoldsNoSlot(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.agent()
	r.stop("k", 1, 2)
	r.awaitEnd("k", events.Succeeded)
	r.awaitNoOpenRequests()
	if record := r.record(1); len(record.Active) > 0 || len(record.Recent) != 1 || !record.Recent[0].Succeeded {
		t.Fatalf("got %+v, want no slot and one memory", record)
	}
	r.changeRecord(1, func(record *guard.Record) { // from before it began to wait, as an agent leaves it that died between
		record.Take(guard.Slot{OperationID: events.OperationID("waits"), ServerID: 3, Steps: 1, Since: time.Now()})
	})
	r.setPause(events.AllClusters, true)
	r.stop("waits", 1, 3)
	r.awaitReason("waits", events.CodePaused)
	if record := r.record(1); len(record.Active) > 0 {
		t.Errorf("got %+v, want no slot", record.Active)
	}
}

// A record names operations that have ended, or that somebody has deleted from the journal: they delay no other.
func TestSlotsAndTicketsOfEndedOperationsDelayNoOther(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.agent()
	r.stop("k", 1, 2)
	r.awaitEnd("k", events.Succeeded)
	r.awaitNoOpenRequests()
	r.changeRecord(1, func(record *guard.Record) {
		for _, id := range []string{events.OperationID("never was"), events.OperationID("k")} {
			record.Take(guard.Slot{OperationID: id, ServerID: 1, Steps: 1})
			record.Enqueue(guard.Ticket{OperationID: id, ServerID: 1, Sequence: 0})
		}
	})
	r.operate(events.Restart, "other", 1, 3)
	r.awaitEnd("other", events.Succeeded)
	if record := r.writtenRecord(1); len(record.Active) != 1 || len(record.Queue) != 0 || record.Active[0].OperationID != events.OperationID("other") {
		t.Errorf("got %+v, want the slot of the operation that took it last", record)
	}
}

// A slot whose holder has written nothing since it took it is held: its request is in the stream, and an agent will go
// on.
func TestASlotOfAnOperationThatHasNotGoneOnIsHeld(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	stop := r.agent()
	r.setPause(1, true)
	r.stop("first", 1, 2)
	waits := r.awaitReason("first", events.CodePaused)
	stop()
	r.changeRecord(1, func(record *guard.Record) { // its agent died right after it took the slot
		record.Take(guard.Slot{OperationID: waits.OperationID, Kind: events.Stop, ServerID: 2, Zone: "zone1", Since: time.Now(), Steps: waits.Steps})
	})
	if record := r.record(1); !record.Holds(waits.OperationID, waits.Steps) {
		t.Errorf("got %+v, want the slot held", record.Active)
	}
	r.setPause(1, false)
	r.agent()
	r.stop("second", 1, 3)
	first, second := r.awaitEnd("first", events.Succeeded), r.awaitEnd("second", events.Succeeded)
	if second.SubmittedAt.Before(first.EndedAt) {
		t.Errorf("the second was submitted at %s, before the end of the first at %s", second.SubmittedAt, first.EndedAt)
	}
}

// Slots and queue of a cluster are gone, but OCP shows the task that runs there.
func TestTheLossOfARecordLetsNoTwoOperationsRun(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 40})
	r.agent()
	r.stop("k", 1, 2)
	r.awaitToken("k", events.Running)
	if err := r.recordBucket().Purge(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}
	r.stop("other", 1, 3)
	first, second := r.awaitEnd("k", events.Succeeded), r.awaitEnd("other", events.Succeeded)
	if second.SubmittedAt.Before(first.EndedAt) {
		t.Errorf("the second was submitted at %s, before the end of the first at %s", second.SubmittedAt, first.EndedAt)
	}
}

// Two agents, and one slot in each of many clusters: the operations run in the order of
// their requests, whichever agent has them.
func TestFirstComeFirstServedAmongAgents(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 300})
	r.setUpBuckets()
	r.setPause(events.AllClusters, true) // so that all are there before the first goes
	const n = 6
	for i := range n {
		r.operate(events.Restart, fmt.Sprint("k", i), 1, int64(1+i%6))
	}
	for i := range 2 {
		r.machine.Agent = fmt.Sprint("agent", i)
		r.agent()
	}
	for i := range n {
		r.awaitReason(fmt.Sprint("k", i), events.CodePaused)
	}
	r.setPause(events.AllClusters, false)
	var submitted []time.Time
	for i := range n {
		submitted = append(submitted, r.awaitEnd(fmt.Sprint("k", i), events.Succeeded).SubmittedAt)
	}
	if !slices.IsSortedFunc(submitted, time.Time.Compare) {
		t.Errorf("submitted at %v, want them in the order in which they came", submitted)
	}
}

func (r *rig) setUpBuckets() {
	r.t.Helper()
	if _, err := events.OpenStreams(r.t.Context(), r.js, events.StreamOptions{Replicas: 1, Retention: time.Hour, AckWait: r.ackWait}); err != nil {
		r.t.Fatal(err)
	}
}

func TestTheBudgetOfAllClustersHoldsForAllAgents(t *testing.T) {
	t.Parallel()
	clusters, err := ocpsim.Grid(8, 3, 1)
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, ocpsim.Config{Clusters: clusters})
	r.policy = laxPolicy()
	r.policy.Fleet = policy.Budget{Operations: 3, Window: time.Hour}
	for i := range 3 {
		r.machine.Agent = fmt.Sprint("agent", i)
		r.agent()
	}
	for _, c := range clusters {
		r.stop(fmt.Sprint("k", c.ID), c.ID, c.Zones[0].Servers[0].ID)
	}
	ended := map[string]bool{}
	waits := map[string]bool{}
	r.await("three ends and five that wait", func(e events.Event) bool {
		switch {
		case e.Token == events.Succeeded:
			ended[e.OperationID] = true
		case e.Token == events.Waiting && e.Reason.Code == events.CodeBudget:
			waits[e.OperationID] = true
		}
		return len(ended) == 3 && len(waits) == 5
	})
	r.wantPosts(3)
}

func TestANewerRequestSupersedesOneThatWaits(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 30})
	r.policy = laxPolicy()
	r.policy.Limits.Supersede = true
	r.agent()
	r.stop("long", 1, 1)
	r.awaitToken("long", events.Running)
	r.stop("older", 1, 3)
	r.awaitReason("older", events.CodeClusterBusy)
	r.stop("newer", 1, 3)
	if op := r.awaitEnd("older", events.Cancelled); op.Reason.Code != events.CodeSuperseded {
		t.Errorf("got %+v, want %s", op.Reason, events.CodeSuperseded)
	}
	r.awaitEnd("newer", events.Succeeded)
	r.wantPosts(2)
}

// A failed task keeps its server busy while OCP shows the server between two statuses. The
// reason of an operation that waits says what to do; the operation goes on once it is done.
func TestAWaitingOperationNamesTheFailedTaskThatLeftItsServerHalfway(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.fault("server_stop:fail_subtask,subtask=Stop observer process,server=2")
	r.agent()
	r.stop("k", 1, 2)
	failed := r.awaitEnd("k", events.Failed)
	r.stop("other", 1, 1)
	op := r.awaitReason("other", events.CodeClusterBusy)
	if want := fmt.Sprintf("task %d", failed.Task.ID); !strings.Contains(op.Reason.Message, want) || !strings.Contains(op.Reason.Message, "retry") {
		t.Errorf("%q does not say that %s has failed and what to do", op.Reason.Message, want)
	}
	r.sim.ClearFaults()
	r.order(events.Retry, "k", 2)
	r.awaitEnd("other", events.Succeeded)
	r.wantTasks(2)
}

// If the record of a cluster is damaged, the agent does nothing in the cluster. An operation
// that waits says so, and expires on time.
func TestADamagedRecordHoldsItsClusterBackAndSaysSo(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.setUpBuckets()
	bucket, err := r.js.KeyValue(t.Context(), events.ClusterBucket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bucket.Put(t.Context(), "1", []byte("garbage")); err != nil {
		t.Fatal(err)
	}
	r.agent()
	r.publish("ob.server.stop.request", `{"idempotency_key":"dry","cluster_id":1,"server_id":2,"dry_run":true}`)
	if op := r.awaitEnd("dry", events.Succeeded); len(op.Decision) != 1 || op.Decision[0].Code != events.CodeRecordUnreadable {
		t.Errorf("a dry run: got %+v, want %s", op.Decision, events.CodeRecordUnreadable)
	}
	r.publish("ob.server.stop.request", fmt.Sprintf(`{"idempotency_key":"short","cluster_id":1,"server_id":2,"expires_at":%q}`,
		time.Now().Add(300*time.Millisecond).Format(time.RFC3339Nano)))
	r.stop("k", 1, 2)
	if op := r.awaitReason("k", events.CodeRecordUnreadable); !strings.Contains(op.Reason.Message, "nats kv get OB_CLUSTERS 1") {
		t.Errorf("%q does not say where to look", op.Reason.Message)
	}
	r.awaitEnd("short", events.Expired)
	r.wantPosts(0)
	if err := bucket.Purge(t.Context(), "1"); err != nil {
		t.Fatal(err)
	}
	r.awaitEnd("k", events.Succeeded)
}

// The first request goes first, even if it waits for another zone to become quiet.
func TestAStreamOfRequestsForOneZoneDoesNotStarveAnother(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 30})
	r.policy = laxPolicy()
	r.policy.Limits.MaxConcurrent, r.policy.Limits.OneZoneAtATime = 3, true
	r.agent()
	r.operate(events.Restart, "first", 1, 1)
	r.awaitToken("first", events.Running)
	r.operate(events.Restart, "elsewhere", 1, 3)
	r.awaitReason("elsewhere", events.CodeOtherZoneActive)
	r.operate(events.Restart, "later", 1, 2) // of the zone that is in use
	later := r.awaitEnd("later", events.Succeeded)
	if elsewhere := r.awaitEnd("elsewhere", events.Succeeded); !elsewhere.SubmittedAt.Before(later.SubmittedAt) {
		t.Errorf("submitted at %s, after the later one at %s", elsewhere.SubmittedAt, later.SubmittedAt)
	}
}

func TestUnknownTargetsAreRejected(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.agent()
	r.stop("no cluster", 77, 2)
	r.stop("no server", 1, 77)
	for _, key := range []string{"no cluster", "no server"} {
		if op := r.awaitEnd(key, events.Rejected); op.Reason.Code != events.CodeNotFound {
			t.Errorf("%s: %+v, want %s", key, op.Reason, events.CodeNotFound)
		}
	}
	r.wantPosts(0)
	r.awaitNoOpenRequests()
}

func TestOneOperationAClusterAtATime(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 200})
	r.agent()
	for server := range int64(4) {
		r.stop(fmt.Sprint("k", server+1), 1, server+1)
	}
	for server := range int64(4) {
		r.awaitEnd(fmt.Sprint("k", server+1), events.Succeeded)
	}
	tasks := r.sim.Tasks()
	for i, task := range tasks[1:] {
		if task.StartTime.Before(tasks[i].FinishTime) {
			t.Errorf("task %d started %s before task %d was over", task.ID, tasks[i].FinishTime.Sub(task.StartTime), tasks[i].ID)
		}
	}
	r.wantPosts(4)
	for server := range int64(4) {
		if tasks[0].Servers[0] == server+1 { // whichever came first
			continue
		}
		waited := r.awaitToken(fmt.Sprint("k", server+1), events.Waiting)
		if reason := waited[len(waited)-1].Reason; reason.Code != events.CodeClusterBusy {
			t.Errorf("waits for %+v, want %s", reason, events.CodeClusterBusy)
		}
	}
}

func TestARequestExpiresWhileItWaits(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 1})
	r.agent()
	r.stop("long", 1, 2)
	r.awaitToken("long", events.Running)
	r.publish("ob.server.stop.request", fmt.Sprintf(`{"idempotency_key":"k","cluster_id":1,"server_id":3,"expires_at":%q}`,
		time.Now().Add(500*time.Millisecond).Format(time.RFC3339Nano)))
	r.awaitEnd("k", events.Expired)
	r.wantPosts(1)
}

func TestOCPAwayMakesOperationsWait(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{})
	r.fault("*:status,status=503,count=5")
	r.agent()
	r.stop("k", 1, 2)
	r.awaitEnd("k", events.Succeeded)
	waited := r.awaitToken("k", events.Waiting)
	if reason := waited[len(waited)-1].Reason; reason.Code != events.CodeStaleTopology {
		t.Errorf("waits for %+v, want %s", reason, events.CodeStaleTopology)
	}
	r.wantPosts(1)
}

func TestOperationsThatWaitForASlotDoNotAskOCP(t *testing.T) {
	t.Parallel()
	r := newRig(t, ocpsim.Config{Speed: 100})
	r.agent()
	const requests = 10
	for i := range requests {
		r.stop(fmt.Sprint("k", i), 1, int64(1+i%6)) // the second stop of a server is refused by OCP: an end too
	}
	for i := range requests {
		id := events.OperationID(fmt.Sprint("k", i))
		r.await("an end", func(e events.Event) bool { return e.OperationID == id && e.Token.Final() })
	}
	looks := 0
	for _, entry := range r.sim.Log() {
		if entry.Endpoint == ocpsim.ZonesList {
			looks++
		}
	}
	if looks > 2*requests {
		t.Errorf("%d looks at the topology for %d requests", looks, requests)
	}
}

// awaitRest waits until an operation rests for a while: it is not decided on again and again.
func (r *rig) awaitRest(key string) {
	r.t.Helper()
	r.atRest(key, "rests", func(h *held) bool { return time.Until(h.hand.plan.at) > 2*time.Second })
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
	r.awaitRest("k")
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
			r.setPause(99, false) // the agent takes in one after the other
			eventually(t, "the agent has taken in both", func() bool { return a.generation.Load() > before+1 })
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
