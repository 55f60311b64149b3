#!/usr/bin/env bash
# Checks the BUILD files with what this machine has; names what is missing and where it comes from.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

say() { printf 'bazel check: %s\n' "$*"; }

mapfile -t files < <(find . \( -name .venv -o -name .git -o -name node_modules \) -prune -o -type f \
  \( -name BUILD -o -name '*.bzl' -o -name WORKSPACE -o -name MODULE.bazel \) -print | sort)

if command -v buildifier > /dev/null; then
  buildifier=(buildifier)
elif command -v npm > /dev/null; then
  buildifier=(npm exec --yes --package=@bazel/buildifier@8.2.1 -- buildifier)
else
  buildifier=()
fi
if [ ${#buildifier[@]} -gt 0 ] && "${buildifier[@]}" --version > /dev/null 2>&1; then
  "${buildifier[@]}" --mode=check --lint=warn "${files[@]}"
  say "buildifier finds nothing in ${#files[@]} files"
else
  say "NOT CHECKED by buildifier: install it (npm install --global @bazel/buildifier)"
fi

if ! command -v bazel > /dev/null; then
  say "NOT CHECKED by bazel: install it (Debian, Ubuntu: apt-get install bazel-bootstrap)"
  exit 0
fi
# --symlink_prefix=/ makes no bazel-* links, which would be scanned as packages.
flags=(--symlink_prefix=/ --noshow_progress --color=no
  "--test_env=PATH=$PWD/.venv/bin:$PATH" --test_env=JAX_PLATFORMS=cpu --test_output=errors)
targets="$(bazel query --noshow_progress //...)"
say "$(wc -l <<< "$targets") targets"
bazel build --symlink_prefix=/ --noshow_progress --color=no //...
# The rest of the tests run under plain pytest (make test); these show that the targets are complete.
[ $# -gt 0 ] || set -- //tests:test_cli //tests:test_config //tests:test_imports //tests:convert
bazel test "${flags[@]}" "$@"
say "query, build and test pass"
