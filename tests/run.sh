#!/usr/bin/env bash
# Installs what is missing, builds Inkling with its tests and runs them. Arguments go to ctest: tests/run.sh -L model
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)

"$top/apps/install_deps.sh"
cd "$top"
cmake --preset release -DINKLING_TESTS=ON
cmake --build --preset release
exec ctest --preset release "$@"
