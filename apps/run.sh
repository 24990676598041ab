#!/usr/bin/env bash
# Builds Inkling if need be and runs it: apps/run.sh generate --prompt "ROMEO:"
# Standard output is the program's alone; installing and building talk on standard error.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)

"$top/apps/install_deps.sh"
cmake_log=$(mktemp)
trap 'rm -f "$cmake_log"' EXIT
if ! (cd "$top" && cmake --preset release -DINKLING_TESTS=OFF >"$cmake_log" 2>&1); then
  cat "$cmake_log" >&2
  exit 1
fi
(cd "$top" && cmake --build --preset release --target inkling >&2)
rm -f "$cmake_log"
exec "$top/build/release/bin/inkling" "$@"
