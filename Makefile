# Everything that people and CI do with this tree. `make` alone lists the targets.

# These tools run at a fixed version, and stay out of go.mod with their dependencies.
GOLANGCI_LINT = github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOVULNCHECK   = golang.org/x/vuln/cmd/govulncheck@v1.9.0

VERSION   = $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
FUZZTIME  = 10s
BENCHTIME = 1s

# For make bench. ROUNDS=0 means five rounds if SIZE is full and one if it is short. ONLY
# names measurements. PROFILE is cpu, heap or another of Go's profiles.
SIZE    = full
ROUNDS  = 0
ONLY    =
PROFILE =

SOAK_TIME = 1h

# For make chaos. SEED=0 means a random seed, which the report names.
CHAOS_TIME   = 20m
CHAOS_OPS    = 10500
SEED         = 0
CHAOS_REPORT = dist/chaos-report.txt

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

.PHONY: build
build: ## build dist/obwarden, static and stripped
	@# Without cgo Go resolves names itself, and the binary runs anywhere.
	@CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.linkedVersion=$(VERSION)' -o dist/obwarden ./cmd/obwarden

.PHONY: test
test: ## run all tests
	@go test ./...

.PHONY: race
race: ## run all tests under the race detector
	@go test -race ./...

.PHONY: lint
lint: ## run go vet, staticcheck, gofmt and the other linters of .golangci.yml
	@go run $(GOLANGCI_LINT) run

.PHONY: vuln
vuln: ## look for known vulnerabilities in reachable code; skipped without network
	@# The database is on the network. If it cannot be reached, the check is skipped with a
	@# message. Any other error is a failure.
	@found=$$(go run $(GOVULNCHECK) ./... 2>&1) && status=0 || status=$$?; \
	case $$status/$$found in \
	0/*) echo "vuln: none known" ;; \
	*'fetching vulnerabilities'*'dial tcp'*) echo "vuln: SKIPPED, the database cannot be reached: $$found" | head -n 1 ;; \
	*) printf '%s\n' "$$found"; exit 1 ;; \
	esac

.PHONY: tidy-check
tidy-check: ## check that go mod tidy would change nothing
	@go mod tidy -diff

.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZTIME
	@# go test fuzzes one target of one package at a time, so list the targets first.
	@list=$$(go test -run '^$$' -list '^Fuzz' ./...) || { printf '%s\n' "$$list"; exit 1; }; \
	printf '%s\n' "$$list" | awk '/^Fuzz/ { name[n++] = $$1 } $$1 == "ok" { for (i = 0; i < n; i++) print $$2, name[i]; n = 0 }' | \
	while read -r package target; do \
		go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$package" || exit 1; \
	done

.PHONY: bench
bench: ## run Go benchmarks for BENCHTIME each, then the load tests at SIZE (full or short); results in dist
	@mkdir -p dist
	@packages=$$(git grep -l --untracked '^func Benchmark' -- '*_test.go' | xargs -r -n 1 dirname | sort -u | sed 's,^,./,'); \
	go test -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) $$packages >dist/bench-go.txt; status=$$?; \
	cat dist/bench-go.txt; exit $$status
	@go test ./agent/bench -run Load -load.size $(SIZE) -load.rounds $(ROUNDS) -load.only '$(ONLY)' -load.profile '$(PROFILE)' \
		-load.dir $(abspath dist) -timeout 3h -v
	@cat dist/bench-go.txt >>dist/bench.txt

.PHONY: bench-readme
bench-readme: ## put the table of the latest full make bench into agent/bench/README.md
	@go test ./agent/bench -run READMEShowsTheRows -load.update -load.dir $(abspath dist)

.PHONY: soak
soak: ## run against a faulty OCP for SOAK_TIME (at least 10m); memory and goroutines must not grow
	@mkdir -p dist
	@go test ./agent/bench -run Soak -soak.time $(SOAK_TIME) -load.profile '$(PROFILE)' -load.dir $(abspath dist) -timeout 24h -v

.PHONY: chaos
chaos: ## attack three agents, NATS and OCP with faults for CHAOS_TIME, with CHAOS_OPS operations
	@mkdir -p $(dir $(CHAOS_REPORT))
	@go test ./agent/chaos -run Chaos -chaos.time $(CHAOS_TIME) -chaos.ops $(CHAOS_OPS) -chaos.seed $(SEED) \
		-chaos.report $(abspath $(CHAOS_REPORT)) -timeout 2h -v

.PHONY: prometheus
prometheus: # install prometheus, promtool, alertmanager and amtool if they are missing
	@# Debian starts every service that it installs. policy-rc.d prevents that here.
	@if ! command -v promtool >/dev/null || ! command -v amtool >/dev/null || ! command -v prometheus >/dev/null; then \
		if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
			echo "install prometheus and prometheus-alertmanager first: this is not Debian, or you are not root" >&2; exit 1; \
		fi; \
		made=; if [ ! -e /usr/sbin/policy-rc.d ]; then printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d && made=1; fi; \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends prometheus prometheus-alertmanager && status=0 || status=$$?; \
		if [ -n "$$made" ]; then rm -f /usr/sbin/policy-rc.d; fi; \
		if [ $$status != 0 ]; then echo "prometheus and prometheus-alertmanager CANNOT BE INSTALLED: rules, dashboards and examples would go untested" >&2; exit $$status; fi; \
	fi

.PHONY: rules
rules: prometheus ## test the alert rules, and check the metrics with promtool
	@promtool test rules deploy/prometheus/rules.test.yml
	@go test -count=1 ./deploy ./metrics -run 'Rule|Alert|Prometheus|Promtool'

.PHONY: e2e
e2e: prometheus ## run agent, NATS, Prometheus and Alertmanager as deployed, and every query of the dashboards
	@go test ./deploy -run EndToEnd -e2e -count=1 -timeout 5m

.PHONY: panels
panels: prometheus ## draw the dashboards of a busy agent as dist/panels/*.png, for people to look at
	@mkdir -p dist/panels
	@go test ./deploy -run EndToEnd -e2e -e2e.out $(abspath dist/panels) -count=1 -timeout 5m
	@cd grafana/draw && go run . $(abspath dist/panels)

.PHONY: ci
ci: ## run the checks that decide whether a change lands
	@.ci/run
