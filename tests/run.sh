#!/usr/bin/env bash
# Installs packages, builds and runs every test: tests/run.sh [preset] [ctest options...], preset release by default.
#   tests/run.sh                 all tests, optimised build
#   tests/run.sh asan -L system  builds and runs only the tests with that label, under AddressSanitizer and UBSan
set -euo pipefail
cd "$(dirname "$0")/.."
preset=release
if [ $# -gt 0 ] && [[ $1 != -* ]]; then
  preset=$1
  shift
fi
deploy/install_packages.sh
target=all
[ "${1:-}" != -L ] || target=wsync_tests_$2
deploy/build.sh "$preset" "$target"
exec ctest --test-dir "build/$preset" --output-on-failure --no-tests=error -j "$(nproc)" "$@"
