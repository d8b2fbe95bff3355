#!/usr/bin/env bash
# Runs the table of faults: tests/faults/cells.sh CELLS_TEST [LOG_DIRECTORY]. A cell waits far more than it works (369 s
# against 27 s of a core's time for all of them), so several jobs suffer theirs at the same time, each in a lane.
#   WSYNC_FAULT_SEEDS  runs of each cell (default 1, the default configuration; see cells_test.cc)
#   WSYNC_FAULT_LANES  jobs at a time (default: six per core and one more, 13 on two cores, which are then half busy;
#                      where sanitizers widen the limits, two per core and one more)
# The lanes' logs stay in LOG_DIRECTORY, if one is given; what failed is printed.
set -euo pipefail
test=$1
cores=$(nproc)
((cores <= 8)) || cores=8 # a lane for every other cell is enough
# An odd number: a lane does not get the same slow cells with every seed.
lanes=${WSYNC_FAULT_LANES:-$(((${WSYNC_FAULT_TIME_FACTOR:-1} > 1 ? 2 : 6) * cores + 1))}
logs=${2:-}
if [ -z "$logs" ]; then
  logs=$(mktemp -d)
  trap 'rm -rf "$logs"' EXIT
fi
mkdir -p "$logs"

pids=()
for ((lane = 0; lane < lanes; ++lane)); do
  GTEST_TOTAL_SHARDS=$lanes GTEST_SHARD_INDEX=$lane "$test" >"$logs/cells-$lane.log" 2>&1 &
  pids+=($!)
done
fail=0
for ((lane = 0; lane < lanes; ++lane)); do
  wait "${pids[lane]}" && continue
  fail=1
  grep -v -e '^CELL|' -e '^SAID|' -e '^\[ RUN ' -e '^\[       OK ' "$logs/cells-$lane.log" || true
done
cat "$logs"/cells-*.log | awk -F'|' -v seeds="${WSYNC_FAULT_SEEDS:-1}" -v lanes="$lanes" '
  /^CELL\|/ { ++runs; if (!seen[$3]++) ++cells }
  /^\[  FAILED  \] Faults.* ms\)$/ { ++failed }
  END { printf "%d cells, %d seeds: %d runs in %d lanes, %d failed\n", cells, seeds, runs, lanes, failed
        if (runs == 0) exit 1 }' || fail=1
exit "$fail"
