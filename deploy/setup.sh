#!/usr/bin/env bash
# Makes .venv at the root of the repository: the platform, the trainers, the demo's data and the developer's tools.
# Quick when pyproject.toml and the constraints are those of the last time. PYTHON names the Python to use.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

EXTRAS="train,tracing,demo,dev"
venv=.venv

fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if command -v "$candidate" >/dev/null && new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "needs Python 3.11 or newer; name one with PYTHON=/path/to/python3.11 make setup"
}

# The stamp holds what the environment was made from and where: a moved .venv has wrong paths inside.
wanted() {
    "$1" - "$PWD" "$EXTRAS" pyproject.toml deploy/constraints.txt <<'PY'
import hashlib, pathlib, sys
root, extras, *files = sys.argv[1:]
parts = [root, extras, sys.version, *(pathlib.Path(file).read_text() for file in files)]
print(hashlib.sha256("\0".join(parts).encode()).hexdigest())
PY
}

if [[ -x $venv/bin/python && -f $venv/setup-stamp && $(wanted "$venv/bin/python") == "$(cat "$venv/setup-stamp")" ]]; then
    exit 0
fi

python=$(find_python)
echo "Setting up .venv with $("$python" --version) (once; a few minutes, about 2 GB) ..."
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 || ! new_enough "$venv/bin/python" \
    || ! grep -qsF "$PWD/$venv" "$venv/bin/activate"; then
    rm -rf "$venv"
    "$python" -m venv "$venv" || fail "cannot make a virtual environment; on Debian: apt-get install python3-venv"
fi
rm -f "$venv/setup-stamp"
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --constraint deploy/constraints.txt \
    --editable ".[$EXTRAS]" || fail "pip could not install the packages; the lines above say why"
wanted "$venv/bin/python" >"$venv/setup-stamp"
echo "Ready: .venv/bin/cohortium --help"
