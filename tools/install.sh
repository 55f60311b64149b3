#!/usr/bin/env bash
# Makes .venv with the locked packages and this project in it. Calling it again mends what is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'install: %s\n' "$*"; }

suits() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2> /dev/null
}

find_python() {
  local name
  for name in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
    if suits "$name"; then
      echo "$name"
      return
    fi
  done
}

make_environment() {
  local python
  python="$(find_python)"
  if [ -n "$python" ]; then
    say "making .venv with $("$python" --version)"
    if has_uv; then
      uv venv --quiet --allow-existing --python "$python" .venv
    else
      "$python" -m venv .venv
    fi
  elif has_uv && [ -z "${PYTHON:-}" ]; then
    say "no Python 3.11 to 3.13 on the path: uv fetches one"
    uv venv --quiet --allow-existing --python '>=3.11,<3.14' .venv
  else
    say "Python 3.11, 3.12 or 3.13 is needed${PYTHON:+, PYTHON=$PYTHON is not one}." >&2
    say "Install one, or uv (which brings its own), or call make PYTHON=/path/to/python3.12." >&2
    exit 1
  fi
}

# A version manager's shim may be on the path without a program behind it: ask it.
has_uv() { [ -z "${NO_UV:-}" ] && uv --version > /dev/null 2>&1; }

with_uv() {
  uv pip install --quiet --python .venv/bin/python --require-hashes -r requirements.lock &&
    uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
}

with_pip() {
  .venv/bin/python -m pip --version > /dev/null 2>&1 || .venv/bin/python -m ensurepip > /dev/null
  local pip=(.venv/bin/python -m pip --disable-pip-version-check --quiet install)
  # "Location ... is ignored" speaks of a machine's own extra index and harms nothing.
  {
    "${pip[@]}" --require-hashes -r requirements.lock &&
      "${pip[@]}" --no-deps --no-build-isolation -e .
  } 2> >(grep -v 'Location .* is ignored' >&2)
}

if [ ! -x .venv/bin/python ]; then
  make_environment
elif ! suits .venv/bin/python; then
  say ".venv has $(.venv/bin/python --version 2>&1 || true); 3.11 to 3.13 is needed. Remove .venv and call again." >&2
  exit 1
fi

say "installing the packages of requirements.lock (about 1 GB, a minute on a good line)"
if has_uv; then
  with_uv || {
    say "uv did not manage; trying pip"
    with_pip
  }
else
  with_pip
fi
say "ready: $(.venv/bin/unialign --version) in .venv"
