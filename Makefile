# Everything that is done often. tools/setup installs what is missing for it.

CARGO ?= cargo
# Handed on: make demo ARGS='--seconds 2'
ARGS ?=

SUDO := $(if $(filter 0,$(shell id -u)),,sudo -E)
# Cargo builds as the user; only what it has built runs as root.
RUNNER := $(if $(SUDO),--config 'target."cfg(unix)".runner="$(SUDO)"')
# Of each crate, tests/NAME.rs runs as anybody; tests/kernel/ is the one that needs root.
UNPRIVILEGED := $(addprefix --test ,$(basename $(notdir $(wildcard crates/*/tests/*.rs))))

.PHONY: help demo build deb test test-kernels test-package test-unprivileged lint bench root

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: root ## See the difference on real servers, in half a minute (needs root)
	@tools/setup build demo
	$(CARGO) build --release --package overspill-cli
	$(SUDO) target/release/overspill demo $(ARGS)

build: ## Build target/release/overspill
	@tools/setup build
	$(CARGO) build --release --package overspill-cli

deb: ## Build the Debian package, target/debian/overspill_VERSION_ARCH.deb
	@tools/setup build package
	CARGO=$(CARGO) tools/package

test-package: root deb ## Install, use and remove it in Debians of its own (needs root)
	$(SUDO) tools/try-package

test: root lint ## Format, clippy, and all tests, those of the kernel too (needs root)
	@tools/setup build test demo
	$(CARGO) test --workspace --no-fail-fast $(RUNNER) $(ARGS)

test-unprivileged: lint ## The same without the tests of the kernel
	@echo 'The tests of the kernel (crates/*/tests/kernel) are left out: they need root.'
	$(CARGO) test --workspace --no-fail-fast --lib --bins $(UNPRIVILEGED)
	$(CARGO) test --workspace --no-fail-fast --doc

test-kernels: root ## Load every program on kernels 6.1 to the newest, test there (needs root)
	@tools/setup build test kernels
	$(CARGO) build --package kernels
	$(CARGO) test --package overspill-cli --test kernel -- --exact versions::each_can_be_built
	@mkdir -p target/kernels
	$(CARGO) test --no-run --package overspill --package overspill-cli --test kernel \
	    --message-format json-render-diagnostics >target/kernels/build.json
	$(SUDO) target/debug/kernels $(ARGS)

lint: ## Format and clippy
	@tools/setup build lint
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

bench: root ## Measure overspill beside what else there is (needs root)
	@tools/setup build test
	$(CARGO) build --release --package overspill-cli
	$(CARGO) run --release --package overspill-benches --bin bench $(RUNNER) -- $(ARGS)
	$(CARGO) run --release --package overspill-benches --bin survive $(RUNNER) -- $(filter --quick,$(ARGS))
	$(CARGO) run --release --package overspill-benches --bin tail $(RUNNER) -- $(filter --quick,$(ARGS))
	$(CARGO) run --release --package overspill-benches --bin scale $(RUNNER) -- $(filter --quick,$(ARGS))

root:
	@test "$$(id -u)" = 0 || command -v sudo >/dev/null || { \
	echo 'This needs root, and there is no sudo here: become root first.' >&2; \
	echo 'make test-unprivileged tests all that can be tested without.' >&2; exit 1; }
