package ocp

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// tasksPage is a list of basic tasks; times are days of March 2021, 0 for none.
func tasksPage(page string, idsAndDays ...int) string {
	var entries []string
	for pair := range slices.Chunk(idsAndDays, 2) {
		start := "null"
		if pair[1] > 0 {
			start = fmt.Sprintf(`"2021-03-%02dT00:00:00Z"`, pair[1])
		}
		entries = append(entries, fmt.Sprintf(`{"id":%d,"startTime":%s}`, pair[0], start))
	}
	return fmt.Sprintf(`{"successful":true,"data":{"contents":[%s]%s}}`, strings.Join(entries, ","), page)
}

func TestTasksReadsAsManyPagesAsItNeeds(t *testing.T) {
	t.Parallel()
	since := time.Date(2021, 3, 5, 0, 0, 0, 0, time.UTC)
	tests := map[string]struct {
		pages []string // what comes after the last is the last again
		since time.Time
		want  []int64
		reads int
	}{
		"published":                 {[]string{string(sample(t, "tasks-list"))}, time.Time{}, []int64{6202983, 6175879}, 1},
		"total pages":               {[]string{tasksPage(`,"page":{"totalPages":2}`, 9, 9, 8, 8), tasksPage(`,"page":{"totalPages":2}`, 7, 7)}, time.Time{}, []int64{9, 8, 7}, 2},
		"total page, a string":      {[]string{tasksPage(`,"page":{"totalPage":"1"}`, 9, 9)}, time.Time{}, []int64{9}, 1},
		"total elements":            {[]string{tasksPage(`,"page":{"totalElements":3}`, 9, 9, 8, 8), tasksPage(`,"page":{"totalElements":3}`, 7, 7)}, time.Time{}, []int64{9, 8, 7}, 2},
		"endless total, empty page": {[]string{tasksPage(`,"page":{"totalPages":99}`, 9, 9), tasksPage(`,"page":{"totalPages":99}`)}, time.Time{}, []int64{9}, 2},
		"same page for ever":        {[]string{tasksPage(`,"page":{"totalPages":99}`, 9, 9)}, time.Time{}, []int64{9}, 2},
		"nothing about pages":       {[]string{tasksPage(``, 9, 9), tasksPage(``, 8, 8), tasksPage(``)}, time.Time{}, []int64{9, 8}, 3},
		"grows while read":          {[]string{tasksPage(``, 9, 9, 8, 8), tasksPage(``, 8, 8, 7, 7), tasksPage(``)}, time.Time{}, []int64{9, 8, 7}, 3},
		"a list without contents":   {[]string{`{"successful":true,"data":[{"id":"3"},{"id":4},null,"x",{}]}`}, time.Time{}, []int64{4, 3}, 2},
		"no contents":               {[]string{`{"successful":true,"data":{"page":null}}`}, time.Time{}, nil, 1},
		"no data":                   {[]string{`{"successful":true,"data":null}`}, time.Time{}, nil, 1},
		"a page before since":       {[]string{tasksPage(``, 9, 9, 8, 4), tasksPage(``, 7, 4, 6, 3), tasksPage(``, 5, 9)}, since, []int64{9}, 2},
		"not started is kept":       {[]string{tasksPage(``, 9, 4, 8, 0), tasksPage(``, 7, 3)}, since, []int64{8}, 2},
		"unsorted proves nothing":   {[]string{tasksPage(``, 1, 1, 2, 2), tasksPage(``, 3, 9), tasksPage(``)}, since, []int64{3}, 3},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rec := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
				if got, want := r.URL.Query().Get("page"), fmt.Sprint(n+1); got != want {
					t.Errorf("page: got %s, want %s", got, want)
				}
				reply(w, http.StatusOK, tt.pages[min(n, len(tt.pages)-1)])
			})
			tasks, err := newClient(t, rec.URL).Tasks(t.Context(), TaskQuery{Since: tt.since})
			if err != nil {
				t.Fatal(err)
			}
			var got []int64
			for _, task := range tasks {
				got = append(got, task.ID)
			}
			if !slices.Equal(got, tt.want) || len(rec.got()) != tt.reads {
				t.Errorf("got %v in %d reads, want %v in %d", got, len(rec.got()), tt.want, tt.reads)
			}
		})
	}
}

func TestPagesAreBounded(t *testing.T) {
	t.Parallel()
	client := newClient(t, "http://ocp.test")
	reads := 0
	client.reads.Transport = roundTrip(func(*http.Request) (*http.Response, error) {
		reads++
		return response(http.StatusOK, fmt.Sprintf(`{"data":[{"id":%d}]}`, reads)), nil
	})
	clusters, err := client.Clusters(t.Context())
	if err != nil || reads != maxPages || len(clusters) != maxPages {
		t.Errorf("got %d clusters in %d reads, %v, want %d", len(clusters), reads, err, maxPages)
	}
}

func TestAnAnswerWithoutAListIsAnErrorWithItsTrace(t *testing.T) {
	t.Parallel()
	rec := serve(t, always(http.StatusOK, `{"successful":true,"traceId":"9","data":"x"}`))
	clusters, err := newClient(t, rec.URL).Clusters(t.Context())
	if err == nil || !strings.Contains(err.Error(), "trace 9") {
		t.Errorf("got %v, %v", clusters, err)
	}
}

// BenchmarkTasks is one page of a list as looks read it.
func BenchmarkTasks(b *testing.B) {
	var entries []string
	for id := range PageSize {
		var subtasks []string
		for i := range 8 {
			subtasks = append(subtasks, fmt.Sprintf(`{"id":%d,"name":"Step %d","status":"PENDING","operation":"EXECUTE"}`, 100*id+i+1, i+1))
		}
		entries = append(entries, fmt.Sprintf(`{"id":%d,"name":"Restart OB server","status":"RUNNING","clusterId":1,"startTime":"2026-01-01T00:00:00Z","subtasks":[%s]}`,
			id+1, strings.Join(subtasks, ",")))
	}
	body := fmt.Appendf(nil, `{"successful":true,"data":{"contents":[%s],"page":{"totalPages":1}}}`, strings.Join(entries, ","))
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		envelope, err := DecodeEnvelope(http.StatusOK, body)
		if err != nil {
			b.Fatal(err)
		}
		var p page
		if err := p.read(envelope.Data); err != nil {
			b.Fatal(err)
		}
		for _, raw := range p.entries {
			if _, err := DecodeTask(raw); err != nil {
				b.Fatal(err)
			}
		}
	}
}
