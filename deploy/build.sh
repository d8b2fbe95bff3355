#!/usr/bin/env bash
# Configures and builds one CMake preset: deploy/build.sh [preset] [target...]. Output stays short unless it fails.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:-release}
shift || true
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! cmake --preset "$preset" >"$log" 2>&1; then
  cat "$log" >&2
  exit 1
fi
targets=()
[ $# -eq 0 ] || targets=(--target "$@")
echo "Building preset '$preset' with $CMAKE_BUILD_PARALLEL_LEVEL jobs (minutes the first time, seconds after)"
if ! cmake --build --preset "$preset" "${targets[@]}" >"$log" 2>&1; then
  grep -v '^\[[0-9]*/[0-9]*\]' "$log" >&2 || cat "$log" >&2
  exit 1
fi
