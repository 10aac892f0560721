# `make help` lists the targets. Each installs what it needs first (see dist/setup), and fails when anything fails.

SHELL := /bin/bash
# Where rustup puts cargo, for shells that have not been told.
export PATH := $(PATH):$(HOME)/.cargo/bin
# More arguments for tests/vm/run, tests/compat/run and fuzz/run, as in: make vm ARGS="appraise-signed --kernel 6.12"
ARGS ?=
# The sources of ima-evm-utils, for make compat.
SUITE ?=

.PHONY: help setup setup-vm setup-vm-full setup-compat build man bpf check test tour vm vm-full compat bench fuzz stress ci

help:
	@echo "make setup     install what building and testing need (apt; says what it does)"
	@echo "make setup-vm  the same for make vm; make setup-vm-full for make vm-full"
	@echo "make build     target/release/imara and imarad"
	@echo "make man       target/man: the man pages"
	@echo "make bpf       compiles the BPF programs again after a change of their source"
	@echo "make tour      watch Imara sign, guard, measure and prove, on a scratch file system"
	@echo "make check     formatting, lints, documentation"
	@echo "make test      every test; live ones as root"
	@echo "make vm        real kernels as the judge, in QEMU"
	@echo "make vm-full   the same with a kernel that has every integrity option; builds it first, once"
	@echo "make compat    the suite of ima-evm-utils with Imara's evmctl, as SUITE=DIR; DIR has its sources"
	@echo "make bench     the cost of decisions and of the guard, as ratios"
	@echo "make fuzz      what reads bytes from outside, under libFuzzer, as ARGS="key -max_total_time=60""
	@echo "make stress    two minutes of everything at once, with the guard killed again and again; as root"
	@echo "make ci        check, test and vm, as .ci/run does"

setup:
	@dist/setup build test

setup-vm:
	@dist/setup build vm

setup-vm-full:
	@dist/setup build vm kernel

setup-compat:
	@dist/setup build compat

build: setup
	cargo build --release --workspace

man: build
	target/release/imara man target/man

bpf:
	@dist/setup build bpf
	crates/linux/bpf/build

check: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --workspace
	@if command -v cargo-deny >/dev/null; then cargo deny check bans licenses sources; \
	else echo "cargo-deny is not installed: deny.toml was not checked"; fi

test: setup
	@tests/run

tour: build
	@bash tests/tour/run target/release

vm: setup-vm
	cargo build --release --package imara
	cargo test --release --package imara --test guard --no-run
	@tests/vm/run $(ARGS)

vm-full: setup-vm-full
	cargo build --release --package imara
	@tests/vm/run --kernel full $(ARGS)

compat: setup-compat
	cargo build --release --package imara
	@tests/compat/run $(SUITE) $(ARGS)

bench: build
	@bash benches/run

fuzz:
	@dist/setup build fuzz
	@fuzz/run $(ARGS)

stress: setup
	IMARA_STRESS_SECONDS=$${IMARA_STRESS_SECONDS:-120} cargo test --release --package imara --test guard under_stress -- --nocapture

ci:
	@.ci/run
