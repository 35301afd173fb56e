package ocp

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func names(task Task) []string {
	var names []string
	for _, s := range task.Subtasks {
		names = append(names, s.Name)
	}
	return names
}

func TestPublishedTasksAreDecoded(t *testing.T) {
	t.Parallel()
	agent := []string{"Prepare reinstalling OCP agent", "Uninstall ocp agent", "Install ocp agent", "Finish reinstalling OCP agent"}
	tests := []struct {
		sample string
		want   Task // without subtasks
		order  []string
	}{
		{"servers-stop", Task{
			ID: 111102, Name: "Stop OB server", Status: StatusRunning, Creator: "admin", ClusterID: 20, OBClusterID: 20,
			ContextClusterID: 20, ServerIDs: []int64{3}, ZoneName: "zone2",
			StartedAt: time.Date(2021, 3, 2, 8, 11, 11, 327e6, time.UTC),
		}, []string{"Prepare stop observer", "Stop server", "Stop observer process", "Wait observer stop",
			"Update observer status", "Update zone status", "Sync cluster info", "Update OB cluster status"}},
		{"servers-start", Task{
			ID: 111125, Name: "Start OB server", Status: StatusRunning, Creator: "admin", ClusterID: 20, OBClusterID: 20,
			ContextClusterID: 20, ServerIDs: []int64{3}, ZoneName: "zone2",
			StartedAt: time.Date(2021, 3, 2, 8, 13, 17, 818e6, time.UTC),
		}, []string{"Prepare start observer", "Start observer process", "Wait observer active", "Start ocp agent service",
			"Start server", "Update observer status", "Update zone status", "Sync cluster info", "Update OB cluster status"}},
		{"servers-restart", Task{
			ID: 89027028, Name: "Restart OB server", Status: StatusRunning, Operation: OperationExecute, Type: "MANUAL",
			Creator: "admin", Executor: "xxx.xxx.xxx.xxx", ClusterID: 12000001,
			ContextClusterID: 12000001, ServerIDs: []int64{13000002}, ZoneName: "zone2",
			StartedAt: time.Date(2021, 9, 5, 14, 46, 20, 22e7, time.UTC),
		}, []string{"Prepare restart observer", "Stop server", "Stop observer process", "Start observer process",
			"Wait observer active", "Start ocp agent service", "Start server", "Update observer status",
			"Update zone status", "Sync cluster info", "Update OB cluster status"}},
		{"tasks-get", Task{
			ID: 35000312, Name: "Reinstall OCP agent", Status: StatusSuccessful, Operation: OperationExecute, Type: "MANUAL",
			Creator: "admin", Executor: "xxx.xxx.xxx.xxx",
			CreatedAt:  time.Date(2021, 8, 25, 7, 9, 31, 0, time.UTC),
			StartedAt:  time.Date(2021, 8, 25, 7, 9, 31, 74e7, time.UTC),
			FinishedAt: time.Date(2021, 8, 25, 7, 9, 54, 67e6, time.UTC),
		}, agent},
	}
	for _, tt := range tests {
		t.Run(tt.sample, func(t *testing.T) {
			t.Parallel()
			got, err := DecodeTask(data(t, tt.sample))
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(names(got), tt.order) {
				t.Errorf("subtasks:\n got %q\nwant %q", names(got), tt.order)
			}
			got.Subtasks = nil
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("task:\n got %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

func TestAPublishedSubtaskIsDecodedInFull(t *testing.T) {
	t.Parallel()
	task, err := DecodeTask(data(t, "tasks-get"))
	if err != nil {
		t.Fatal(err)
	}
	got := task.Subtasks[2]
	if got.SeriesID == nil || *got.SeriesID != 0 {
		t.Errorf("series: got %v, want 0", got.SeriesID)
	}
	got.SeriesID = nil
	want := Subtask{
		ID: 13000336, Name: "Install ocp agent", Description: "Install ocp agent", Status: StatusSuccessful,
		Operation: OperationExecute, Upstreams: []int64{13000333}, Downstreams: []int64{13000334}, Runs: 1,
		NodeType: "JAVA_TASK", ParallelIdx: -1, Timeout: 90 * time.Minute,
		StartedAt:  time.Date(2021, 8, 25, 7, 9, 36, 821e6, time.UTC),
		FinishedAt: time.Date(2021, 8, 25, 7, 9, 52, 182e6, time.UTC),
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("\n got %+v\nwant %+v", got, want)
	}
}

func TestOddFieldsDoNotCostATask(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		task string
		want func(Task) bool
	}{
		"ids as strings and floats": {`{"id":"9007199254740993","clusterId":7.0,"hostId":"2e3"}`, func(t Task) bool {
			return t.ID == 9007199254740993 && t.ClusterID == 7 && t.HostID == 2000
		}},
		"nulls everywhere": {`{"id":1,"name":null,"status":null,"cluster":null,"context":null,"creator":null,"subtasks":null,"tasks":[null],"startTime":null}`,
			func(t Task) bool { return reflect.DeepEqual(t, Task{ID: 1, Subtasks: []Subtask{}}) }},
		"wrong types": {`{"id":1,"name":{},"status":[],"cluster":7,"context":5,"creator":[],"subtasks":"x","startTime":{},"clusterId":3}`,
			func(t Task) bool { return reflect.DeepEqual(t, Task{ID: 1, ClusterID: 3, Subtasks: []Subtask{}}) }},
		"V4.3": {`{"id":1,"clusterId":2,"hostId":3,"creator":"ann","prohibitRollback":true,"operation":"rollback","status":" running "}`, func(t Task) bool {
			return t.Creator == "ann" && t.ProhibitRollback && t.RolledBack() && t.Status == StatusRunning && !t.Finished()
		}},
		"creator object beside clusterId": {`{"id":1,"clusterId":2,"creator":{"id":1,"name":"ann"},"context":"Context(stringMap={server_id=3}, listMap={server_ids=[4, 3]})"}`, func(t Task) bool {
			return t.Creator == "ann" && slices.Equal(t.ServerIDs, []int64{4, 3})
		}},
		"both lists, the richer subtask": {`{"id":1,"tasks":[{"id":1,"status":"READY","upstreams":[2]},{"id":2,"status":"RUNNING"}],"subtasks":[{"id":1,"name":"poor"},{"id":3}]}`, func(t Task) bool {
			return len(t.Subtasks) == 3 && t.Subtasks[0].ID == 2 && t.Subtasks[1].Status == StatusReady
		}},
		"repeated id, the first": {`{"id":1,"subtasks":[{"id":1,"name":"first"},{"id":1,"name":"second","status":"FAILED"},{"id":0},{"id":-4}]}`, func(t Task) bool {
			return len(t.Subtasks) == 1 && t.Subtasks[0].Name == "first"
		}},
		"parallel index": {`{"id":1,"subtasks":[{"id":1,"paralleIdx":4},{"id":2,"parallelIdx":"5"},{"id":3}]}`, func(t Task) bool {
			return t.Subtasks[0].ParallelIdx == 4 && t.Subtasks[1].ParallelIdx == 5 && t.Subtasks[2].ParallelIdx == -1
		}},
		"absurd timeout": {`{"id":1,"subtasks":[{"id":1,"timeout":9223372036854775807},{"id":2,"timeout":-1}]}`, func(t Task) bool {
			return t.Subtasks[0].Timeout > 0 && t.Subtasks[1].Timeout == 0
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := DecodeTask([]byte(tt.task))
			if err != nil || !tt.want(got) {
				t.Errorf("%s:\n got %+v, %v", tt.task, got, err)
			}
		})
	}
}

func TestATaskWithoutAnIDIsRefused(t *testing.T) {
	t.Parallel()
	for _, body := range []string{``, `null`, `{}`, `[]`, `"x"`, `7`, `{"id":0}`, `{"id":-1}`, `{"id":"x"}`, `{"id":1.5}`, `{"id":1`} {
		if task, err := DecodeTask([]byte(body)); err == nil {
			t.Errorf("%q: got %+v, want an error", body, task)
		}
	}
}

func TestTheOperationTellsWhetherATaskIsRolledBack(t *testing.T) {
	t.Parallel()
	tests := []struct {
		task Task
		want bool
	}{
		{Task{}, false},
		{Task{Operation: OperationRollback}, true},
		{Task{Operation: OperationRollbackSkip}, true},
		{Task{Subtasks: []Subtask{{Operation: OperationExecute}, {Operation: OperationRollback}}}, true},
		{Task{Operation: OperationRetry, Subtasks: []Subtask{{Operation: OperationRollback}}}, false},
	}
	for _, tt := range tests {
		if got := tt.task.RolledBack(); got != tt.want {
			t.Errorf("%+v: got %t, want %t", tt.task, got, tt.want)
		}
	}
}

func TestSubtasksStandInAnOrderInWhichTheyCanRun(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		subtasks string
		want     []int64
	}{
		"chain told by upstreams":         {`[{"id":1,"upstreams":[2]},{"id":2,"upstreams":[3]},{"id":3}]`, []int64{3, 2, 1}},
		"chain told by downstreams":       {`[{"id":1},{"id":2,"downstreams":[1]},{"id":3,"downstreams":["2"]}]`, []int64{3, 2, 1}},
		"chain told by downstream":        {`[{"id":1},{"id":2,"downstream":[1]},{"id":3,"downstream":[2]}]`, []int64{3, 2, 1}},
		"each edge told at one end":       {`[{"id":1,"upstreams":[2]},{"id":2},{"id":3,"downstreams":[2]}]`, []int64{3, 2, 1}},
		"diamond, series decides":         {`[{"id":1,"seriesId":0},{"id":2,"seriesId":2,"upstreams":[1]},{"id":3,"seriesId":1,"upstreams":[1]},{"id":4,"seriesId":3,"upstreams":[2,3]}]`, []int64{1, 3, 2, 4}},
		"diamond, id decides":             {`[{"id":4,"upstreams":[2,3]},{"id":3,"upstreams":[1]},{"id":2,"upstreams":[1]},{"id":1}]`, []int64{1, 2, 3, 4}},
		"dangling and own edges":          {`[{"id":1,"upstreams":[99,1,2]},{"id":2,"downstreams":[98]}]`, []int64{2, 1}},
		"no edges, all have series":       {`[{"id":1,"seriesId":2},{"id":2,"seriesId":1},{"id":3,"seriesId":0}]`, []int64{3, 2, 1}},
		"no edges, one has no series":     {`[{"id":3,"seriesId":0},{"id":1,"seriesId":2},{"id":2}]`, []int64{1, 2, 3}},
		"cycle, all have series":          {`[{"id":1,"seriesId":1,"upstreams":[2]},{"id":2,"seriesId":0,"upstreams":[1]}]`, []int64{2, 1}},
		"cycle beside a chain, no series": {`[{"id":1,"upstreams":[2]},{"id":2,"upstreams":[1]},{"id":3,"upstreams":[4]},{"id":4}]`, []int64{1, 2, 3, 4}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			task, err := DecodeTask([]byte(`{"id":1,"subtasks":` + tt.subtasks + `}`))
			if err != nil {
				t.Fatal(err)
			}
			var got []int64
			for _, s := range task.Subtasks {
				got = append(got, s.ID)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// TestTheOrderOfSubtasksDoesNotDependOnTheInput shuffles random graphs, cyclic ones among them.
func TestTheOrderOfSubtasksDoesNotDependOnTheInput(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		n := 1 + random.IntN(12)
		var subtasks []Subtask
		for i := range n {
			s := Subtask{ID: int64(i + 1)}
			if random.IntN(3) > 0 {
				series := random.Int64N(4)
				s.SeriesID = &series
			}
			for range random.IntN(3) {
				s.Upstreams = append(s.Upstreams, random.Int64N(int64(n)+2))
			}
			subtasks = append(subtasks, s)
		}
		want := arrange(slices.Clone(subtasks))
		checkOrder(t, want)
		for range 5 {
			random.Shuffle(n, func(i, j int) { subtasks[i], subtasks[j] = subtasks[j], subtasks[i] })
			if got := arrange(slices.Clone(subtasks)); !reflect.DeepEqual(got, want) {
				t.Fatalf("order of the input shows:\n got %+v\nwant %+v", got, want)
			}
		}
	}
}

// checkOrder fails where a subtask precedes one of its upstreams, unless the graph
// has a cycle: some set of subtasks that all wait for each other.
func checkOrder(t *testing.T, subtasks []Subtask) {
	t.Helper()
	done := map[int64]bool{}
	sorted := true
	for _, s := range subtasks {
		if done[s.ID] {
			t.Errorf("subtask %d: twice", s.ID)
		}
		sorted = sorted && !slices.ContainsFunc(s.Upstreams, func(id int64) bool { return !done[id] })
		done[s.ID] = true
	}
	if sorted {
		return
	}
	waiting := slices.Clone(subtasks)
	for removed := true; removed; {
		removed = false
		blocked := map[int64]bool{}
		for _, s := range waiting {
			blocked[s.ID] = true
		}
		waiting = slices.DeleteFunc(waiting, func(s Subtask) bool {
			free := !slices.ContainsFunc(s.Upstreams, func(id int64) bool { return blocked[id] })
			removed = removed || free
			return free
		})
	}
	if len(waiting) == 0 {
		t.Errorf("a subtask precedes its upstream: %+v", subtasks)
	}
}

func TestTimesAreReadInAllTheirForms(t *testing.T) {
	t.Parallel()
	at := time.Date(2021, 3, 2, 8, 11, 11, 0, time.UTC)
	tests := []struct {
		json string
		want time.Time
	}{
		{`"2021-03-02T16:11:11+08:00"`, at},
		{`"2021-03-02T16:11:11+0800"`, at},
		{`"2021-03-02T08:11:11Z"`, at},
		{`"2021-03-02T08:11:11.3Z"`, at.Add(300 * time.Millisecond)},
		{`"2021-03-02T16:11:11.327456+08:00"`, at.Add(327456 * time.Microsecond)},
		{`"2021-03-02T16:11:11.327+0800"`, at.Add(327 * time.Millisecond)},
		{`"2021-03-02 08:11:11"`, at},
		{`"2021-03-02T08:11:11"`, at},
		{`" 2021-03-02 16:11:11+08:00 "`, at},
		{`1614672671000`, at},
		{`"1614672671000"`, at},
		{`1.614672671e12`, at},
		{`"1970-01-01T00:00:00Z"`, time.Time{}},
		{`"1970-01-01T08:00:00+08:00"`, time.Time{}},
		{`"1970-01-01T00:00:00-08:00"`, time.Time{}},
		{`"0001-01-01T00:00:00Z"`, time.Time{}},
		{`"9999-12-31T23:59:59-08:00"`, time.Time{}},
		{`0`, time.Time{}},
		{`9223372036854775807`, time.Time{}},
		{`-9223372036854775808`, time.Time{}},
		{`null`, time.Time{}},
		{`""`, time.Time{}},
		{`"yesterday"`, time.Time{}},
		{`"2021-13-40T00:00:00Z"`, time.Time{}},
		{`{}`, time.Time{}},
		{`true`, time.Time{}},
	}
	for _, tt := range tests {
		var got moment
		if err := json.Unmarshal([]byte(tt.json), &got); err != nil || !got.Equal(tt.want) || got.Location() != time.UTC {
			t.Errorf("%s: got %v, %v, want %v", tt.json, got, err, tt.want)
		}
	}
}

func TestAContextIsTakenApartAsFarAsItCanBe(t *testing.T) {
	t.Parallel()
	type lists = map[string][]string
	type strs = map[string]string
	tests := map[string]struct {
		context string
		strings strs
		lists   lists
	}{
		"empty":               {"", strs{}, lists{}},
		"published":           {"Context(parallelIdx=-1, stringMap={zone_name=zone2, server_id=3}, listMap={server_ids=[3]})", strs{"zone_name": "zone2", "server_id": "3"}, lists{"server_ids": {"3"}}},
		"empty maps":          {"Context(parallelIdx=-1, stringMap={}, listMap={})", strs{}, lists{}},
		"several items":       {"Context(stringMap={}, listMap={a=[1, 2,3], b=[], c=[x]})", strs{}, lists{"a": {"1", "2", "3"}, "c": {"x"}}},
		"lists first":         {"Context(listMap={a=[1]}, stringMap={b=2})", strs{"b": "2"}, lists{"a": {"1"}}},
		"commas in a value":   {"Context(stringMap={ips=10.0.0.1,10.0.0.2, more, server_id=3})", strs{"ips": "10.0.0.1,10.0.0.2, more", "server_id": "3"}, lists{}},
		"equals in a value":   {"Context(stringMap={where=a = b, c d = e, server_id=3})", strs{"where": "a = b, c d = e", "server_id": "3"}, lists{}},
		"object in a value":   {"Context(stringMap={o={a=1, server_id=9}, server_id=3})", strs{"o": "{a=1, server_id=9}", "server_id": "3"}, lists{}},
		"name twice":          {"Context(stringMap={server_id=3, note=x, server_id=9})", strs{"server_id": "3", "note": "x, server_id=9"}, lists{}},
		"bracket unpaired":    {"Context(stringMap={note=:-), server_id=3}, listMap={server_ids=[3]})", strs{"note": ":-)", "server_id": "3"}, lists{"server_ids": {"3"}}},
		"cut off":             {"Context(parallelIdx=-1, stringMap={zone_name=zone2, server_id=3, for", strs{"zone_name": "zone2", "server_id": "3, for"}, lists{}},
		"empty value, name":   {"Context(stringMap={a=, =b, c=d})", strs{"a": ", =b", "c": "d"}, lists{}},
		"list without parens": {"listMap={server_ids=3}", strs{}, lists{"server_ids": {"3"}}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			strings, lists := ParseContext(tt.context)
			if !reflect.DeepEqual(strings, tt.strings) || !reflect.DeepEqual(lists, tt.lists) {
				t.Errorf("%s:\n got %q %q\nwant %q %q", tt.context, strings, lists, tt.strings, tt.lists)
			}
		})
	}
}

// TestHostileSizeIsCheap would run for hours if an answer's size entered squared.
func TestHostileSizeIsCheap(t *testing.T) {
	t.Parallel()
	const n = 100_000
	var subtasks strings.Builder
	for i := range n {
		fmt.Fprintf(&subtasks, `{"id":%d},`, i+1)
	}
	task, err := DecodeTask([]byte(`{"id":1,"subtasks":[` + strings.TrimSuffix(subtasks.String(), ",") + `]}`))
	if err != nil || len(task.Subtasks) != n {
		t.Errorf("got %d subtasks, %v, want %d", len(task.Subtasks), err, n)
	}
	ParseContext("stringMap={a=" + strings.Repeat(",", 10*n))
	ParseContext("stringMap={a=" + strings.Repeat("{", 10*n))
}

func FuzzDecodeTask(f *testing.F) {
	for _, body := range samples(f) {
		if envelope, err := DecodeEnvelope(200, body); err == nil {
			f.Add([]byte(envelope.Data))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		task, err := DecodeTask(data)
		if err != nil {
			return
		}
		if task.ID < 1 {
			t.Errorf("id: got %d", task.ID)
		}
		checkOrder(t, task.Subtasks)
		if _, err := json.Marshal(task); err != nil {
			t.Errorf("what was read cannot be written: %v", err)
		}
	})
}

func FuzzParseContext(f *testing.F) {
	f.Add("Context(parallelIdx=-1, stringMap={zone_name=zone2, server_id=3}, listMap={server_ids=[3]})")
	f.Add("stringMap={a=b,c={d=[e}, listMap={}")
	f.Fuzz(func(t *testing.T, context string) {
		values, lists := ParseContext(context)
		if values == nil || lists == nil {
			t.Error("got a nil map")
		}
		for name := range values {
			if !isName(name) {
				t.Errorf("name: got %q", name)
			}
		}
	})
}

func BenchmarkDecodeTask(b *testing.B) {
	body := data(b, "servers-restart")
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := DecodeTask(body); err != nil {
			b.Fatal(err)
		}
	}
}
