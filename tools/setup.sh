#!/bin/sh
# Installs into .venv what the project needs: `setup.sh dependencies`, then `setup.sh project`. Called by make.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
DISK_GIB=${DISK_GIB:-10}
UV=0.13.9

fail() {
    echo "grpokit: $*" >&2
    exit 1
}

free_mib() {
    df -Pk . | awk 'NR == 2 { print int($4 / 1024) }'
}

# Runs a step quietly; what it printed is shown only if it fails.
step() {
    echo "grpokit: $1" >&2
    shift
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        [ "$(free_mib)" -ge 200 ] || fail "the disk is full; free about $DISK_GIB GiB and run make again."
        fail "that step failed; the lines above say why."
    fi
    rm -f "$log"
}

dependencies() {
    command -v "$PYTHON" >/dev/null 2>&1 ||
        fail "there is no $PYTHON; install Python 3.11 or newer, or name yours: make PYTHON=python3.12 ..."
    version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$PYTHON is Python $version, 3.11 or newer is needed; name another: make PYTHON=python3.12 ..."
    command -v cargo >/dev/null 2>&1 ||
        fail "there is no cargo; install a Rust toolchain, 1.88 or newer (https://rustup.rs), and run make again."
    if [ ! -f .venv/.locked ] && [ "$(free_mib)" -lt $((DISK_GIB * 1024)) ]; then
        fail "$(free_mib) MiB of disk are free here and about $DISK_GIB GiB are needed; free some and run make again."
    fi
    [ -x .venv/bin/python ] || step "making .venv with Python $version" "$PYTHON" -m venv .venv
    [ -x .venv/bin/uv ] || step "installing uv" .venv/bin/python -m pip install --quiet "uv==$UV"
    step "installing the locked dependencies (torch among them: some GiB, the first time only)" \
        .venv/bin/uv pip install --quiet --compile-bytecode --python .venv/bin/python --require-hashes \
        -r requirements.lock
    touch .venv/.locked
}

project() {
    command -v cargo >/dev/null 2>&1 ||
        fail "there is no cargo; install a Rust toolchain, 1.88 or newer (https://rustup.rs), and run make again."
    step "building the Rust core (some 90 seconds the first time)" env PATH="$PWD/.venv/bin:$PATH" \
        .venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
    touch .venv/.project
}

case "${1:-}" in
    dependencies | project) "$1" ;;
    *) fail "usage: setup.sh dependencies | project" ;;
esac
