# Everything that is done by hand or by a machine: `make` lists it. Each target installs what it
# needs and lacks, except Rust itself. ARGS go through: `make demo ARGS=--keep`.

# Where rustup puts cargo, for shells that have not read its profile.
export PATH := $(PATH):$(HOME)/.cargo/bin

DENY_VERSION := 0.20.2
DENY_ROOT := target/tools/cargo-deny-$(DENY_VERSION)
DENY := $(DENY_ROOT)/bin/cargo-deny

.PHONY: help demo test check audit bench sim chaos interop pictures system database lint-tools

## help      this list
help:
	@sed -n 's/^## //p' Makefile

## demo      play SNS to a real server and watch one command arrive
demo: system
	cargo run --locked --release -- demo $(ARGS)

## test      all tests
test: system database
	cargo test --locked $(ARGS)

## check     all that must hold before a change goes in; the tests come last
check: system database lint-tools $(DENY)
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
	$(DENY) --locked check bans licenses sources
	cargo test --locked

## audit     known faults in what we depend on; fetches the advisory database
audit: system $(DENY)
	$(DENY) --locked check advisories

## bench     what a notification and a notice cost, beside a bare server and a bare client
bench: system database
	cargo bench --locked --bench intake -- $(ARGS)
	cargo bench --locked --bench sinks
	cargo bench --locked --bench neighbours
	cargo bench --locked --bench replicas

## sim       100,000 seeds of faults at every call of the store, on one thread; ARGS='--seed 7 --trace' plays one
sim: system database
	cargo test --locked --release --test sim -- --long $(ARGS)

## chaos     minutes of kills, pauses, cuts, stalls and lost COMMITs, of three replicas on one PostgreSQL
chaos: system database
	cargo test --locked --test it -- replicas::chaos:: --ignored --nocapture --test-threads=1

## interop   other people's programs: LocalStack, mail servers, Alertmanager, the vendors' models, HAProxy,
##           PostgreSQL 12 to 18, PgBouncer, Patroni
interop: system database
	tests/interop/run.sh $(ARGS)

## pictures  draw mails and chats from what was really sent, for docs/pictures.md
pictures: system
	tests/interop/run.sh sinks
	command -v chromium >/dev/null || apt-get install -qy --no-install-recommends \
		chromium fonts-noto-color-emoji fonts-dejavu-core
	node docs/pictures/draw.mjs target/interop/sinks/run/sent target/interop/node docs/pictures

# A C compiler (SQLite, zstd), pkg-config and OpenSSL's headers, however they came here; where they
# are missing, Debian's packages.
system:
	@command -v cargo >/dev/null || { \
		echo 'cargo is missing: install Rust 1.95 or newer, by rustup (https://rustup.rs, or the package)' >&2; exit 1; }
	@if command -v cc >/dev/null && pkg-config --exists openssl 2>/dev/null; then exit 0; fi; \
	packages='build-essential pkg-config libssl-dev'; \
	if ! command -v apt-get >/dev/null; then \
		echo 'a C compiler, pkg-config or the headers of OpenSSL are missing' >&2; exit 1; fi; \
	if [ "$$(id -u)" -eq 0 ]; then as_root=; \
	elif command -v sudo >/dev/null; then as_root=sudo; \
	else echo "as root: apt-get install $$packages" >&2; exit 1; fi; \
	set -x; \
	$$as_root apt-get update -q && \
	$$as_root env DEBIAN_FRONTEND=noninteractive \
		apt-get install -qy --no-install-recommends $$packages

# The programs of PostgreSQL, of which the tests start a server of their own; none is started by
# installing them.
database:
	@if ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null; then exit 0; fi; \
	if ! command -v apt-get >/dev/null; then echo 'PostgreSQL is missing' >&2; exit 1; fi; \
	if [ "$$(id -u)" -eq 0 ]; then as_root=; \
	elif command -v sudo >/dev/null; then as_root=sudo; \
	else echo 'as root: apt-get install postgresql' >&2; exit 1; fi; \
	set -x; \
	$$as_root mkdir -p /etc/postgresql-common && \
	{ test -e /etc/postgresql-common/createcluster.conf || \
		echo 'create_main_cluster = false' | $$as_root tee /etc/postgresql-common/createcluster.conf; } && \
	$$as_root apt-get update -q && \
	$$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
		-o Dpkg::Options::=--force-confold postgresql

lint-tools:
	@cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 || \
	rustup component add rustfmt clippy

$(DENY): | system
	cargo install --locked --debug --root $(DENY_ROOT) --version $(DENY_VERSION) cargo-deny
