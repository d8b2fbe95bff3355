#!/usr/bin/env bash
# The long form of the fault tests: tests/faults/long.sh [seeds] [lanes]. Builds, then runs
#   every cell with `seeds` seeds (default 100), `lanes` of them at a time (default: as cells.sh),
#   10,000 versions with a kill every fifty, a catalog of 1,000,000 tensors, 1,000,000 flipped bits,
#   1,000,000 simulated versions.
# Writes the outcomes to build/faults/, and the table of README.md from them (tests/faults/table.sh).
set -euo pipefail
cd "$(dirname "$0")/../.."
seeds=${1:-100}
lanes=${2:-}
deploy/install_packages.sh
deploy/build.sh release wsync_tests_faults coordinator_simulation_test
bin=build/release/bin
out=build/faults
rm -rf "$out"
mkdir -p "$out"

fail=0
run() { # run NAME COMMAND...: its output in $out/NAME.log
  local name=$1
  shift
  echo "== $name"
  if "$@" >"$out/$name.log" 2>&1; then
    grep -E '^(NETWORK|RESOURCE|RESTART|SOAK)\||^[0-9,]+ (flips|seeds)' "$out/$name.log" || true
  else
    echo "FAILED: $name, see $out/$name.log" >&2
    fail=1
  fi
}

echo "== cells: $seeds seeds"
env "WSYNC_FAULT_SEEDS=$seeds" ${lanes:+"WSYNC_FAULT_LANES=$lanes"} tests/faults/cells.sh "$bin/cells_test" "$out" || {
  echo "FAILED: cells, see $out/cells-*.log" >&2
  fail=1
}

run simulation env WSYNC_SIM_SEEDS=45000 "$bin/coordinator_simulation_test"
run flips env WSYNC_FAULT_FLIPS=1000000 "$bin/flips_test"
run detection "$bin/detection_test"
run restart "$bin/restart_test"
run verify "$bin/verify_test"
run network "$bin/network_test"
run resource env WSYNC_FAULT_TENSORS=1000000 "$bin/resource_test"
run soak env WSYNC_FAULT_SOAK=10000 "$bin/soak_test"
tests/faults/table.sh "$out"/cells-*.log >"$out/table.md"
echo "The table for README.md is in $out/table.md"
exit "$fail"
