#!/usr/bin/env bash
# Configures and builds one CMake preset. Output stays short unless it fails.
#   deploy/build.sh                      the three programs, optimised: build/release/bin/wsync{,-trainer,-rollout}
#   deploy/build.sh PRESET [TARGET...]   of another preset, or other targets; `all` is everything, tests included
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
[ $# -gt 0 ] || set -- wsync wsync-trainer wsync-rollout
echo "Building preset '$preset' with $CMAKE_BUILD_PARALLEL_LEVEL jobs (minutes the first time, seconds after)"
if ! cmake --build --preset "$preset" --target "$@" >"$log" 2>&1; then
  grep -v '^\[[0-9]*/[0-9]*\]' "$log" >&2 || cat "$log" >&2
  exit 1
fi
