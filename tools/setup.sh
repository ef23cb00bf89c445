#!/usr/bin/env bash
# Builds the virtual environment from the hash-pinned lock file. Called by `make setup`.
set -euo pipefail
PYTHON=${PYTHON:-python3.11}
VENV=${VENV:-.venv}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

if ! command -v "$PYTHON" >/dev/null; then
  echo "hie needs Python 3.11: install the Debian package python3.11 or set PYTHON=…" >&2
  exit 1
fi
if [ ! -x "$VENV/bin/pip" ]; then
  # A bare Debian Python comes without ensurepip.
  "$PYTHON" -c 'import ensurepip' 2>/dev/null || {
    as_root apt-get update -qq && as_root apt-get install -y -qq --no-install-recommends python3.11-venv >/dev/null
  }
  "$PYTHON" -m venv "$VENV"
fi
"$VENV/bin/pip" install -qq --require-hashes --requirement requirements-dev.lock
"$VENV/bin/pip" install -qq --no-deps --no-build-isolation --editable .
echo "hie is set up: $VENV/bin/hie --help"
