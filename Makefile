# Everything a contributor or CI does, one target each; `make help` lists them.
# Building and running need Go and make only: the BPF objects are committed. What else a target needs, it installs
# through scripts/install-deps (Debian, as root) or names.

# The compiler of the BPF code is pinned where it is called: in generate.go.
GO        ?= go
# Arguments for the command in `make run`, for example: make run ARGS='--localport 443 -o text'
ARGS      ?=
# Where `make install` puts things, below DESTDIR if that is set.
PREFIX    ?= /usr/local
# Per fuzz target, in executions: with a time, Go before 1.27 now and then reports the end of it as a failure
# (golang/go#75804).
FUZZTIME  ?= 200000x
# For `make test-vm`: kernels of Debian's, each with or without a variant; test/vm/run says which there are.
KERNEL    ?= 5.10 6.1 6.12 6.12:integrity 6.12:confidentiality 6.12:arm64

# One static binary that runs on any distribution and in an empty container. `race` alone needs cgo.
export CGO_ENABLED := 0

# Go stamps the commit into the binary, and fails where git does not trust the clone's owner (root in a container, on a
# bind mount): there, build without the stamp.
NOSTAMP := $(shell git rev-parse HEAD >/dev/null 2>&1 || echo -buildvcs=false)

.PHONY: build run install test generate generate-check dist dist-check lint fmt-check vet race fuzz bench bench-crowd screenshots screenshot-top screenshot-report clean validate-manifests image test-vm help

# grpcnotrace leaves out gRPC's debug pages, which nobody could open, and the 3 MB of the packages for them.
# Always asks go, which knows better than make what is out of date. Silent, so that `make run | jq` gets records only.
build: ## build bin/tcptrace (the default)
	@$(GO) build -trimpath -tags grpcnotrace $(NOSTAMP) -o bin/tcptrace ./cmd/tcptrace

run: build ## build, then trace this host until interrupted (root; ARGS='...')
	@exec bin/tcptrace $(ARGS)

install: build ## build, then install below PREFIX=/usr/local: command, manual page, completions, documents
	scripts/install "$(DESTDIR)$(PREFIX)" bin/tcptrace

# -count=1: the running kernel is an input that go's test cache does not see.
# -p 1: the live tests watch the whole host, and packages tested side by side would disturb each other's timing.
test: ## all tests: unit, command line, live kernel (live ones need root)
	scripts/install-deps test oci cri queries chromium
	$(GO) test -count=1 -p 1 -timeout 20m ./...

test-vm: ## the live tests on other kernels, in QEMU (KERNEL='6.12 6.12:arm64 ...')
	scripts/install-deps vm
	test/vm/run $(KERNEL)

generate: ## compile bpf/ anew and rewrite the generated code in internal/probe
	scripts/install-deps generate
	$(GO) generate ./...

# In a copy, so that the work tree stays as it is. The copy starts without generated files, which also finds a committed
# file that nothing generates any more; and it lies elsewhere, which finds a path that leaked into an object.
generate-check: ## fail if the committed generated code is not what bpf/ gives
	scripts/install-deps generate
	@set -e; copy=$$(mktemp -d); trap 'rm -rf "$$copy"' EXIT; \
	tar --exclude=./.git --exclude=./bin --exclude=./dist -cf - . | tar -xf - -C "$$copy"; \
	rm -f "$$copy"/internal/probe/*_bpfe[lb].*; \
	(cd "$$copy" && $(GO) generate ./...); \
	diff -rq internal/probe "$$copy/internal/probe" || { \
		echo "generate-check: internal/probe is not what bpf/ gives: run 'make generate' and commit the result" >&2; \
		exit 1; }

dist: ## make a release in dist/: static commands, SBOMs, archives, checksums
	scripts/dist

dist-check: ## fail if two builds of a release differ, or what is in it does not work (COLD=1: from nothing)
	scripts/install-deps dist
	scripts/dist-check

image: dist ## make the container image of a release: dist/tcptrace-image.tar, both architectures
	scripts/install-deps oci
	scripts/image

# In a module of its own, so that Kubernetes never becomes a dependency of the product.
validate-manifests: ## test deploy/kubernetes/ as an API server would (the first run builds its validation: a minute)
	cd deploy/kubernetes && $(GO) vet . && $(GO) test -count=1 .

# The linter lives in a module of its own, so that its dependencies never become the product's.
lint: ## golangci-lint, rules in .golangci.yml (the first run builds it: about two minutes)
	$(GO) tool -modfile=tools/go.mod golangci-lint run

fmt-check: ## fail if gofmt would change a file
	@out=$$(gofmt -l .) && test -z "$$out" || { echo "fmt-check: run gofmt -w on:" >&2; echo "$$out" >&2; exit 1; }

vet: ## go vet
	$(GO) vet ./...
	$(GO) -C test/collector vet .

# Not ./test: those tests drive the built command, which has no race detector in it.
race: ## the tests of cmd, internal and pkg under the race detector (needs gcc)
	scripts/install-deps race
	CGO_ENABLED=1 $(GO) test -race -count=1 -timeout 20m ./cmd/... ./internal/... ./pkg/...

# go test fuzzes one target of one package at a time, hence the loop over all that exist.
fuzz: ## run each fuzz target FUZZTIME=200000x times
	@grep -roH --include='*_test.go' '^func Fuzz[[:alnum:]_]*' . | sort | while IFS=: read -r file func; do \
		name=$${func#func }; echo "--- $$file: $$name"; \
		$(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "$$(dirname "$$file")" </dev/null || exit 1; \
	done

# On a quiet machine: it takes a quarter of an hour, and what else runs is in the figures.
bench: build ## measure tcptrace beside tcpstates, tcplife, bpftrace and ss, and rewrite docs/performance.* (root)
	scripts/install-deps bench
	$(GO) build -o bin/ ./test/storm ./test/bench
	bin/bench

bench-crowd: build ## what 100,000 and 1,000,000 idle sockets cost (root; a quarter of an hour and 7 GB of memory)
	$(GO) build -o bin/crowd ./test/crowd
	bin/crowd 100000 1000000

screenshots: screenshot-top screenshot-report ## take the pictures that the documents show, each from a real run (root; two minutes)

screenshot-top: build
	scripts/install-deps test
	scripts/screenshot-top bin/tcptrace docs/top.svg

screenshot-report: build
	scripts/install-deps test chromium
	scripts/screenshot-report

clean: ## remove what the build made
	rm -rf bin dist

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18
