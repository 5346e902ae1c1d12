# Sourced by tools/test.sh and tools/demo.sh: makes .venv at the project's root, once, from
# tools/constraints.txt, and leaves its interpreter in $PYTHON. Needs Python 3.11 or 3.12 and a C compiler.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    local candidate
    for candidate in python3.11 python3.12 python3 python; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "error: Python 3.11 or 3.12 with venv must be on PATH: install it (Debian: apt-get install python3-venv)" >&2
    exit 2
}

make_environment() {
    local wanted
    wanted="$(cat tools/constraints.txt pyproject.toml | cksum)"
    PYTHON="$PWD/.venv/bin/python"
    if [ "$(cat .venv/made-from 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    echo "setting up .venv (once)" >&2
    [ -x "$PYTHON" ] || "$(find_python)" -m venv .venv
    # torch first: packages whose build looks for it find this one instead of fetching another.
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -c tools/constraints.txt torch
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -c tools/constraints.txt -e '.[dev]'
    echo "$wanted" > .venv/made-from
}

set -euo pipefail
make_environment
