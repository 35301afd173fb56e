# Everything a person or CI does to this tree. `make` alone lists it.

# Tools run by version and stay out of go.mod: their dependencies are not ours.
GOLANGCI_LINT = github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOVULNCHECK   = golang.org/x/vuln/cmd/govulncheck@v1.9.0

VERSION   = $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
FUZZTIME  = 10s
BENCHTIME = 1s

# Of make bench: ROUNDS 0 is five where SIZE is full and one where it is short, ONLY
# names measurements, PROFILE is cpu, heap or another of Go's.
SIZE    = full
ROUNDS  = 0
ONLY    =
PROFILE =

SOAK_TIME = 1h

# Of make chaos. SEED 0: any, and the report says which.
CHAOS_TIME   = 20m
CHAOS_OPS    = 10500
SEED         = 0
CHAOS_REPORT = dist/chaos-report.txt

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

.PHONY: build
build: ## dist/obwarden, static and stripped
	@# Without cgo the name resolver is Go's own and the binary runs anywhere.
	@CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.linkedVersion=$(VERSION)' -o dist/obwarden ./cmd/obwarden

.PHONY: test
test: ## all tests
	@go test ./...

.PHONY: race
race: ## all tests under the race detector
	@go test -race ./...

.PHONY: lint
lint: ## go vet, staticcheck, gofmt and more, as .golangci.yml says
	@go run $(GOLANGCI_LINT) run

.PHONY: vuln
vuln: ## known vulnerabilities in code that is reached; skipped without network
	@# The database is on the network. Where that is closed nothing is known, which is
	@# said and is no failure; anything else that goes wrong is one.
	@found=$$(go run $(GOVULNCHECK) ./... 2>&1) && status=0 || status=$$?; \
	case $$status/$$found in \
	0/*) echo "vuln: none known" ;; \
	*'fetching vulnerabilities'*'dial tcp'*) echo "vuln: SKIPPED, the database cannot be reached: $$found" | head -n 1 ;; \
	*) printf '%s\n' "$$found"; exit 1 ;; \
	esac

.PHONY: tidy-check
tidy-check: ## go.mod and go.sum are what go mod tidy makes
	@go mod tidy -diff

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME
	@# go test fuzzes one target of one package at a time, so they are listed first.
	@list=$$(go test -run '^$$' -list '^Fuzz' ./...) || { printf '%s\n' "$$list"; exit 1; }; \
	printf '%s\n' "$$list" | awk '/^Fuzz/ { name[n++] = $$1 } $$1 == "ok" { for (i = 0; i < n; i++) print $$2, name[i]; n = 0 }' | \
	while read -r package target; do \
		go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$package" || exit 1; \
	done

.PHONY: bench
bench: ## benchmarks, BENCHTIME each, then SIZE load (full or short); table and raw data in dist; PROFILE=cpu keeps profiles
	@mkdir -p dist
	@packages=$$(git grep -l --untracked '^func Benchmark' -- '*_test.go' | xargs -r -n 1 dirname | sort -u | sed 's,^,./,'); \
	go test -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) $$packages >dist/bench-go.txt; status=$$?; \
	cat dist/bench-go.txt; exit $$status
	@go test ./agent/bench -run Load -load.size $(SIZE) -load.rounds $(ROUNDS) -load.only '$(ONLY)' -load.profile '$(PROFILE)' \
		-load.dir $(abspath dist) -timeout 3h -v
	@cat dist/bench-go.txt >>dist/bench.txt

.PHONY: bench-readme
bench-readme: ## the table of the latest full make bench into README
	@go test ./agent/bench -run READMEShowsTheRows -load.update -load.dir $(abspath dist)

.PHONY: soak
soak: ## operations against an OCP with faults for SOAK_TIME, 10m at least: memory and goroutines must stay as they are
	@mkdir -p dist
	@go test ./agent/bench -run Soak -soak.time $(SOAK_TIME) -load.profile '$(PROFILE)' -load.dir $(abspath dist) -timeout 24h -v

.PHONY: chaos
chaos: ## three agents, NATS and OCP under faults for CHAOS_TIME, with CHAOS_OPS operations
	@mkdir -p $(dir $(CHAOS_REPORT))
	@go test ./agent/chaos -run Chaos -chaos.time $(CHAOS_TIME) -chaos.ops $(CHAOS_OPS) -chaos.seed $(SEED) \
		-chaos.report $(abspath $(CHAOS_REPORT)) -timeout 2h -v

.PHONY: prometheus
prometheus: # prometheus, promtool, alertmanager and amtool, where they are missing
	@# Debian starts what it installs, and these are to be had only: policy-rc.d says no.
	@if ! command -v promtool >/dev/null || ! command -v amtool >/dev/null || ! command -v prometheus >/dev/null; then \
		if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
			echo "install prometheus and prometheus-alertmanager first: this is no Debian, or not root" >&2; exit 1; \
		fi; \
		made=; if [ ! -e /usr/sbin/policy-rc.d ]; then printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d && made=1; fi; \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends prometheus prometheus-alertmanager && status=0 || status=$$?; \
		if [ -n "$$made" ]; then rm -f /usr/sbin/policy-rc.d; fi; \
		if [ $$status != 0 ]; then echo "prometheus and prometheus-alertmanager CANNOT BE INSTALLED: rules, dashboards and examples would go untested" >&2; exit $$status; fi; \
	fi

.PHONY: rules
rules: prometheus ## the alerts do what their tests say, and promtool likes the metrics
	@promtool test rules deploy/prometheus/rules.test.yml
	@go test -count=1 ./deploy ./metrics -run 'Rule|Alert|Prometheus|Promtool'

.PHONY: e2e
e2e: prometheus ## agent, NATS, Prometheus and Alertmanager as they are deployed; every query of the dashboards
	@go test ./deploy -run EndToEnd -e2e -count=1 -timeout 5m

.PHONY: panels
panels: prometheus ## dist/panels/*.png: what the dashboards show of a busy agent, for people to look at
	@mkdir -p dist/panels
	@go test ./deploy -run EndToEnd -e2e -e2e.out $(abspath dist/panels) -count=1 -timeout 5m
	@cd grafana/draw && go run . $(abspath dist/panels)

.PHONY: ci
ci: ## what decides whether a change lands
	@.ci/run
