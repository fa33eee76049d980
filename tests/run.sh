#!/usr/bin/env bash
# Builds everything and runs all checks: formatting, lints, every test (those on real PostgreSQL servers included) and
# the documentation. Installs what is missing first. Can be run as often as you like; leaves no server and no
# temporary file behind, also when interrupted.
#
#     tests/run.sh            CAIRN_KEEP=1 keeps the folders of tests that failed
#
# All that compiles is compiled once, in the release profile: RocksDB's C++ takes many minutes the first time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tests/setup.sh

say "what the build and the tests need"
setup
# Every supported server.
for major in 13 14 15 16 17 18; do
    extra_postgres "$major"
done
echo "$(cargo --version), PostgreSQL 13 to 18 (the system's is $(system_postgres)); builds are kept in $CARGO_TARGET_DIR"

# Short, because the path of a server's socket may have no more than 107 bytes.
work=$(mktemp -d /tmp/pgcairn.XXXXXX)
chmod 755 "$work"
log=$(mktemp "$work/log.XXXXXX")
# Tests that restore hundreds of times go to memory if there is plenty: there is no disk to wait for.
memory=
free=$(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1 || true)
if ((${free:-0} > 2 << 20)); then
    memory=$(mktemp -d /dev/shm/pgcairn.XXXXXX)
fi
finish() {
    local status=$?
    trap - EXIT
    [[ -z $memory ]] || rm -rf -- "$memory"
    if [[ -n ${CAIRN_KEEP:-} && $status != 0 ]]; then
        echo "kept: $work"
    else
        remove_with_servers "$work"
    fi
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
export TMPDIR=$work CAIRN_TEST_MEMORY=$memory

step() {
    say "$*"
    local start=$SECONDS
    "$@"
    echo "($((SECONDS - start)) s)"
}

step cargo fmt --all --check
step cargo clippy --release --locked --workspace --all-targets -- -D warnings
# The test targets are built along, so that one choice of features serves all steps.
step cargo build --release --locked --workspace --all-targets
step cargo test --release --locked --workspace 2>&1 | tee "$log"
RUSTDOCFLAGS="-D warnings" step cargo doc --release --locked --workspace --no-deps --document-private-items

say "all checks passed"
awk '/^test result:/ { passed += $4; failed += $6 }
     END { printf "%d passed, %d failed\n", passed, failed; exit passed == 0 || failed > 0 }' "$log"
