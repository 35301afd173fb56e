package alerts_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/obwarden/obwarden/agent/alerts"
	"github.com/obwarden/obwarden/agent/facts"
	"github.com/obwarden/obwarden/agent/ocp"
	"github.com/obwarden/obwarden/agent/ocp/ocpsim"
	"github.com/obwarden/obwarden/agent/policy"
	"github.com/obwarden/obwarden/events"
	"github.com/obwarden/obwarden/metrics"
)

// notification is a webhook body as Alertmanager posts it.
const notification = `{"version": "4", "alerts": [{
	"status": "firing",
	"labels": {"alertname": "OceanBaseServerDown", "ob_cluster_name": "pay", "svr_ip": "10.0.0.2"},
	"annotations": {"summary": "no answer for 5 minutes"},
	"startsAt": "2026-11-24T21:30:00Z"
}]}`

// examplePolicy has one rule: restart a server whose alert fires.
func examplePolicy() *policy.Policy {
	return must(policy.Parse("policy.yaml", []byte(`
alerts:
  - name: server-down
    matchers: ['alertname="OceanBaseServerDown"']
    kind: restart
    target: {cluster: ob_cluster_name, host: svr_ip}
    reason: "{{.Annotations.summary}}"
`)))
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// exampleOCP is a simulated OCP with two servers, and a client of it.
func exampleOCP() (client *ocp.Client, shutdown func()) {
	sim := must(ocpsim.New(ocpsim.Config{
		Users: ocpsim.DefaultUsers("admin", "secret"),
		Clusters: []ocpsim.ClusterConfig{{ID: 1, Name: "pay", Zones: []ocpsim.ZoneConfig{{
			Name: "zone1", Servers: []ocpsim.ServerConfig{{ID: 1, IP: "10.0.0.1"}, {ID: 2, IP: "10.0.0.2"}},
		}}}},
	}))
	server := httptest.NewServer(sim.Handler())
	client = must(ocp.New(ocp.Config{URL: server.URL, Username: "admin", Password: "secret", Timeout: 5 * time.Second}))
	return client, func() {
		client.Close()
		sim.Close()
		server.Close()
	}
}

// Alertmanager posts a notification to the webhook, twice. The answer says that the first made a request, which is on
// disk, and that the second asks for nothing new.
func ExampleWebhook() {
	ctx := context.Background()
	dir := must(os.MkdirTemp("", "obwarden"))
	defer os.RemoveAll(dir)
	server := must(events.StartServer("127.0.0.1:0", dir, slog.New(slog.DiscardHandler)))
	defer server.Close()
	nc := must(nats.Connect(server.URL()))
	defer nc.Close()
	js := must(jetstream.New(nc))
	options := events.StreamOptions{Replicas: 1, Retention: time.Hour, AckWait: 5 * time.Second}
	streams := must(events.OpenStreams(ctx, js, options))
	bucket := must(alerts.OpenBucket(ctx, js, options))
	client, shutdown := exampleOCP()
	defer shutdown()

	inForce := examplePolicy()
	webhook := alerts.NewWebhook(alerts.Config{
		JetStream: js, Journal: streams.Operations, Bucket: bucket, Directory: facts.NewDirectory(client),
		Policy:  func() *policy.Policy { return inForce },
		Metrics: metrics.New(prometheus.NewRegistry(), "", "", metrics.Scraped{}),
		Log:     slog.New(slog.DiscardHandler), Retention: options.Retention,
		Credentials: alerts.Credentials{Token: "secret"},
	})
	for range 2 {
		r := httptest.NewRequest(http.MethodPost, "/alertmanager", strings.NewReader(notification))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer secret")
		w := httptest.NewRecorder()
		webhook.ServeHTTP(w, r)
		var indented bytes.Buffer
		if err := json.Indent(&indented, bytes.TrimSpace(w.Body.Bytes()), "", "  "); err != nil {
			panic(err)
		}
		fmt.Println(w.Code, indented.String())
	}
	// Output:
	// 200 {
	//   "alerts": [
	//     {
	//       "alert": "OceanBaseServerDown",
	//       "fingerprint": "8c461266188a734c",
	//       "rule": "server-down",
	//       "result": "requested",
	//       "operation_id": "jlvciojmezgxwi2aphltprfkcy",
	//       "message": "restart server 2 of cluster 1"
	//     }
	//   ]
	// }
	// 200 {
	//   "alerts": [
	//     {
	//       "alert": "OceanBaseServerDown",
	//       "fingerprint": "8c461266188a734c",
	//       "rule": "server-down",
	//       "result": "duplicate",
	//       "operation_id": "jlvciojmezgxwi2aphltprfkcy"
	//     }
	//   ]
	// }
}

// What would the rules make of a notification? Nothing is changed by asking.
func ExamplePreviewBody() {
	client, shutdown := exampleOCP()
	defer shutdown()
	directory := facts.NewDirectory(client)
	body, now := []byte(notification), time.Now()
	previews := must(alerts.PreviewBody(context.Background(), examplePolicy(), directory, body, now))
	for _, p := range previews {
		fmt.Println(p.Alert, "matches rule", p.Rule)
		fmt.Println(p.Result+":", p.Message)
		fmt.Println("reason:", p.Request.Reason)
		fmt.Println("key:", p.Request.IdempotencyKey)
	}
	// Output:
	// OceanBaseServerDown matches rule server-down
	// requested: restart server 2 of cluster 1
	// reason: no answer for 5 minutes
	// key: alert/server-down/8c461266188a734c/2026-11-24T21:30:00Z
}
