# Every target is what a person types and what .ci/run calls. Needed: Go. What else a target needs it names, installs when
# run as root, and otherwise prints the line that installs it (.ci/need).

.DEFAULT_GOAL := help
.NOTPARALLEL:
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

# A checkout without tags, and a tree outside git, build too. An outer repository's tags are not ours.
VERSION ?= $(shell { test -e .git && git describe --tags --dirty 2>/dev/null; } || echo devel)
COMMIT  ?= $(shell { test -e .git && git rev-parse --short=12 HEAD 2>/dev/null; } || echo unknown)

MODULE   := github.com/relevo-proxy/relevo
MAIN     := $(MODULE)/cmd/relevo
LDFLAGS   = -X main.version=$(VERSION) -X main.commit=$(COMMIT)
TOOL     := go tool -modfile=.ci/tools.mod
FUZZTIME ?= 1m
ROUNDS   ?= 5
DURATION ?= 3s

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' Makefile

.PHONY: build
build: ## Build bin/relevo
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/relevo ./cmd/relevo

.PHONY: run
run: build ## Build, then run a proxy with an echo server behind it, to try out
	bin/relevo run --trial

.PHONY: demo
demo: build ## Build, then show what it does, step by step, in this terminal
	bin/relevo demo

.PHONY: test
test: ## All tests, with the race detector and in random order (needs gcc and curl; neither root nor systemd)
	@.ci/need gcc:gcc+libc6-dev curl:curl
	CGO_ENABLED=1 go test -race -shuffle=on -timeout=15m ./...
	go test -shuffle=on -run='Alloc' ./forwarder/... ./upgrade/... # the race detector itself allocates

.PHONY: torture
torture: ## UPGRADES (100; with SOAK=1 1000) one after another under everything at once, with the race detector
	@.ci/need gcc:gcc+libc6-dev
	RELEVO_TEST_UPGRADES=$(or $(UPGRADES),$(if $(SOAK),1000,100)) CGO_ENABLED=1 go test -race -count=1 -timeout=2h -v \
		-run='^(TestTorture|TestFramesAreSplit|TestCaller|TestCrew|TestLedger)' ./cmd/relevo

.PHONY: torture-config
torture-config: ## Changes over REST, at random (CONFIG_ROUNDS, 100), with kills and upgrades amid them, with the race detector
	@.ci/need gcc:gcc+libc6-dev
	RELEVO_TEST_CONFIG_ROUNDS=$(or $(CONFIG_ROUNDS),100) CGO_ENABLED=1 go test -race -count=1 -timeout=2h -v \
		-run='^(TestChanges|TestAnsweredChanges|TestWritersAndUpgrades|TestAnyChanges)' ./cmd/relevo

.PHONY: upgrade-faults
upgrade-faults: ## All that can go wrong with an upgrade, with the race detector and without, writes docs/upgrade-faults.md
	@.ci/need gcc:gcc+libc6-dev
	RELEVO_TEST_FAULT_PAGE=/dev/null CGO_ENABLED=1 go test -race -count=1 -timeout=30m -run='^TestUpgradeFaults$$' ./cmd/relevo
	RELEVO_TEST_FAULT_PAGE=$(CURDIR)/docs/upgrade-faults.md go test -count=1 -timeout=30m -v -run='^TestUpgradeFaults$$' ./cmd/relevo

.PHONY: chaos
chaos: ## Twenty servers fail at random for CHAOS_TIME (2m) under half load, then the same with upgrades (CHAOS_SEED: the faults of a run before)
	RELEVO_TEST_CHAOS_TIME=$(or $(CHAOS_TIME),2m) RELEVO_TEST_CHAOS_SEED=$(CHAOS_SEED) go test -count=1 -timeout=2h -v \
		-run='^(TestChaos|TestChaosWithUpgrades|TestBoard)$$' ./cmd/relevo

.PHONY: overload
overload: ## Ten times the load that servers can carry for OVERLOAD_TIME (1m), and a storm of retries
	RELEVO_TEST_OVERLOAD_TIME=$(or $(OVERLOAD_TIME),1m) go test -count=1 -timeout=2h -v \
		-run='^(TestOverload|TestRecovered|TestRetryStorm)$$' ./cmd/relevo

.PHONY: check
check: format tidy vet fix lint fuzz-short test ## Everything that must hold before a change lands

.PHONY: format
format:
	@echo '== format: gofumpt and goimports have nothing to change'
	@diff=$$($(TOOL) gofumpt -d . && $(TOOL) goimports -local $(MODULE) -d .) && test -z "$$diff" || { echo "$$diff"; exit 1; }

.PHONY: tidy
tidy:
	@echo '== tidy: go.mod and go.sum say what the code imports'
	@go mod tidy -diff

.PHONY: vet
vet:
	@echo '== vet'
	@go vet ./...

.PHONY: fix
fix:
	@echo '== fix: go fix has nothing to modernize'
	@go fix -diff ./...

.PHONY: lint
lint:
	@echo '== lint (the first run builds golangci-lint: some minutes)'
	@$(TOOL) golangci-lint run ./...

.PHONY: fuzz-short
fuzz-short:
	@echo '== fuzz, shortly'
	@.ci/fuzz 5s

.PHONY: fuzz
fuzz: ## Fuzz each target for FUZZTIME (1m)
	@.ci/fuzz $(FUZZTIME)

.PHONY: build-floor
build-floor:
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -o bin/floor ./cmd/relevo/bench/floor

COMPARE = go run ./cmd/relevo/bench/compare -floor bin/floor $(if $(BASELINE),-baseline $(BASELINE))

.PHONY: bench
bench: build build-floor ## Compare with haproxy and nginx side by side, write docs/benchmarks.md (ROUNDS, DURATION; BASELINE: an older relevo)
	@.ci/need haproxy:haproxy nginx:nginx+libnginx-mod-stream
	$(COMPARE) -rounds $(ROUNDS) -duration $(DURATION) -out docs/benchmarks.md

.PHONY: bench-quick
bench-quick: build build-floor ## The same workloads within two minutes, printed and not written (needs haproxy; nginx where it is there)
	@.ci/need haproxy:haproxy
	@$(COMPARE) -rounds 1 -duration 1s -neighbours=false

.PHONY: bench-scale
bench-scale: build build-floor ## Curves of CPU a request by connections, routes, endpoints and requests in flight, for docs/benchmarks.md
	@.ci/need haproxy:haproxy
	go run ./cmd/relevo/bench/scale -out docs/benchmarks.md

.PHONY: bench-idle
bench-idle: build ## Memory of 10,000 idle connections, and what collecting garbage costs beside them, for docs/benchmarks.md
	go run ./cmd/relevo/bench/idle -out docs/benchmarks.md

# The last revision before reads, writes and batches were tuned, for the comparison with it.
BEFORE ?= be18f9e

.PHONY: bench-fairness
bench-fairness: build build-floor ## A quiet connection beside eight that flood, now and at the revision BEFORE, for docs/benchmarks.md
	@.ci/need haproxy:haproxy
	@tree=$$(mktemp -d) && trap 'rm -rf "$$tree"' EXIT && git archive $(BEFORE) | tar -x -C "$$tree" && \
		CGO_ENABLED=0 go build -C "$$tree" -trimpath -buildvcs=false -ldflags '-X main.version=before -X main.commit=$(BEFORE)' \
		-o $(CURDIR)/bin/relevo-before ./cmd/relevo
	go run ./cmd/relevo/bench/compare -floor bin/floor -baseline bin/relevo-before -fairness -rounds $(ROUNDS) -out docs/benchmarks.md

.PHONY: bench-upgrade
bench-upgrade: build ## Upgrade a proxy that has 10,000 connections, write that section of docs/benchmarks.md
	RELEVO_BENCH_UPGRADE=$(CURDIR)/bin/relevo RELEVO_BENCH_PAGE=$(CURDIR)/docs/benchmarks.md \
		go test -count=1 -v -run='^TestBenchUpgrade$$' ./cmd/relevo

.PHONY: bench-config
bench-config: build ## Change the configuration of a proxy under load 1,000 times a minute, write that section of docs/benchmarks.md
	RELEVO_BENCH_CONFIG=$(CURDIR)/bin/relevo RELEVO_BENCH_PAGE=$(CURDIR)/docs/benchmarks.md \
		go test -count=1 -v -timeout=30m -run='^TestBenchConfig$$' ./cmd/relevo

# What `profile` loads the proxy with: as for `relevo bench bolt`, with "worker" in front to have workers carry the requests.
LOAD     ?= --connections 8 --in-flight 64
PROFILES := profile-cpu profile-allocs profile-mutex profile-block profile-trace
.PHONY: profile $(PROFILES)
profile: $(PROFILES) ## Profiles of a proxy under LOAD, in bin/: profile-cpu, -allocs, -mutex, -block, and -trace of the runtime
$(PROFILES): build
	@.ci/need curl:curl+ca-certificates
	.ci/profile $(patsubst cpu,profile,$(@:profile-%=%)) '$(LOAD)' bin/$@ $(if $(@:profile-trace=),10,2)

.PHONY: packages
packages: ## Make deb and rpm packages of VERSION for amd64 and arm64, in dist/
	packaging/build $(VERSION) dist

.PHONY: packages-twice
packages-twice: ## Make the packages twice, in different surroundings, and compare the bytes
	packaging/reproduce

.PHONY: packages-lint
packages-lint: ## Lintian and rpmlint on packages that are made for it: no error, no warning that has no reason
	@.ci/need lintian:lintian rpmlint:rpmlint rpm:rpm man:man-db promtool:prometheus
	packaging/lint

.PHONY: test-systemd
test-systemd: ## Everything that the packages and the unit promise, in machines with a real systemd (needs root and the lab)
	packaging/test-systemd bookworm trixie

.PHONY: test-systemd-short
test-systemd-short: ## The heart of it, within minutes
	packaging/test-systemd --short bookworm

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin dist
