package web_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/obwarden/obwarden/agent/web"
)

// An agent whose OCP does not answer is ready: it takes requests, and they wait. An agent without NATS is not.
func ExampleHandler() {
	var nats error
	h := web.Handler(web.Config{
		Gatherer: prometheus.NewRegistry(),
		Ready:    func(context.Context) error { return nats },
		OCP:      func() string { return "in trouble (clusters_list: 503)" },
	})
	get := func(path string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		fmt.Print(path, ": ", w.Code, " ", w.Body)
	}
	get(web.HealthyPath)
	get(web.ReadyPath)
	nats = errors.New("not connected")
	get(web.ReadyPath)
	get(web.HealthyPath)
	// Output:
	// /-/healthy: 200 healthy
	// /-/ready: 200 {"ready":true,"nats":"ok","ocp":"in trouble (clusters_list: 503)"}
	// /-/ready: 503 {"ready":false,"nats":"not connected","ocp":"in trouble (clusters_list: 503)"}
	// /-/healthy: 200 healthy
}
