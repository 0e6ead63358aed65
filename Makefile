# make builds and checks as CI does. docs/CONTRIBUTING.md says what each target
# is for.
SHELL       := bash
.SHELLFLAGS := -euo pipefail -c

GO       ?= go
LINT     := $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
FUZZTIME ?= 10m
BENCH    ?= .
SEEDS    ?= 1000000

PROOFS   := ^TestAServerThatMisbehavesLosesNothing$$|^TestLibertiesOfGrammarChangeNothing$$

.PHONY: all build test test-all test-acme test-oidc proof lint fmt fuzz bench bench-peers criteria reference simulation package container
all: build lint test

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o postern ./cmd/postern

# Nothing is skipped here: what is missing is installed (Debian, as root), and
# what still is fails its test. The race detector needs cgo and a C compiler.
test:
	.ci/packages
	$(MAKE) --output-sync=line -j2 test-all test-acme test-oidc

test-all:
	.ci/fuzz 1s
	POSTERN_ALL=1 $(GO) test -race -timeout 20m ./...
	.ci/package-test
	.ci/nft-test

test-acme: # against a CA; most of the time it waits for certificates to grow old
	cd proxy/certs/acmetest && $(GO) test -race -timeout 10m ./...

test-oidc: # against an authorization server of other authors
	cd proxy/token/oidctest && $(GO) test -race -timeout 5m ./...

# What takes longer than make test bears: the same tests with more seeds, on all
# cores. A seed that fails is named, and runs alone with its dialogue by
# POSTERN_SEED=123 go test ./bridge -run TestAServerThatMisbehaves -v
proof:
	POSTERN_SEEDS=$(SEEDS) $(GO) test -count=1 -timeout=0 -run='$(PROOFS)' ./bridge -v
	$(GO) test -count=1 -timeout=0 -run='^TestUIDLsNeverChange$$' ./bridge -histories=20000
	POSTERN_BRAKE_WEEKS=1 $(GO) test -count=1 -timeout=0 -run='^TestAWeekOfPolls' ./bridge -v
	POSTERN_PROOF=1 $(GO) test -count=1 -timeout=0 -run='^TestAnAccountTakesLittleSpace$$' ./metrics/ledger -v
	POSTERN_ALL=1 POSTERN_CARRY=2000 $(GO) test -count=1 -timeout=0 -run='^TestUIDLsAreCarriedOverFrom' ./cmd/postern -v
	POSTERN_ALL=1 POSTERN_WAVES=500 $(GO) test -count=1 -timeout=0 -run='^TestMigrationInWaves$$' ./cmd/postern -v
	$(GO) test -count=1 -timeout=0 -run='^TestNoMessageIsTakenForAnother$$' ./bridge/oldserver -boxes=1000000
	POSTERN_PROOF=1 $(GO) test -count=1 -timeout=0 -run='^TestProof' ./cmd/postern -v # storms: a quiet machine, please
	.ci/fuzz $(FUZZTIME)

lint:
	$(LINT) run
	$(GO) mod tidy -diff
	cd proxy/certs/acmetest && $(GO) mod tidy -diff && $(GO) vet ./...
	cd bench/mailload && $(GO) vet . && $(GO) test .
	cd proxy/token/oidctest && $(GO) mod tidy -diff && $(GO) vet ./...
	deps=$$($(GO) list -deps ./cmd/postern); ! grep -xE 'testing(/.*)?|postern/proxy/proxytest' <<<"$$deps"
	.ci/criteria | diff -u docs/criteria.md - || { echo "docs/criteria.md is old: run 'make criteria'"; exit 1; }
	$(GO) test -run='^TestSimulation$$' ./proxy/guard # docs/guard.md; without the race detector: see simulation_race_test.go

fmt:
	$(LINT) fmt

fuzz:
	.ci/fuzz $(FUZZTIME)

bench:
	$(GO) test -run='^$$' -bench='$(BENCH)' -benchmem ./...

bench-peers: # as root, ten minutes: see docs/performance.md
	bench/peers

criteria:
	new=$$(.ci/criteria); printf '%s\n' "$$new" >docs/criteria.md

reference:
	$(GO) test -count=1 -run='^TestTheReferenceIsCurrent$$' ./configs -update
	$(GO) test -count=1 -run='^TestTheListOfMetricsIsCurrent$$' ./metrics -update

# dist/: the binary, .deb, .rpm, notices and SBOM.
package:
	.ci/package

simulation:
	$(GO) test -count=1 -run='^TestSimulation$$' ./proxy/guard -update

# dist/postern-image.tar: the same in a container, by buildah.
container:
	.ci/container
