#!/usr/bin/env bash
# Every test that needs a GPU, for anyone who has one: tests/gpu/run.sh [BIN_DIR]
#   BIN_DIR   where the programs are, when they were built elsewhere (deploy/build.sh static wsync_tests_gpu makes them
#             need no library but libc); without it they are built here.
# In the environment:
#   PARTS="exact bench"  runs these parts only, in this order; all of them: exact memcheck racecheck bench
#   OUT=DIR              where logs and results go; by default a new directory under /tmp
#   MIN_RATIO=0.93       quantizing must reach this part of the device's own copy rate; by default any rate passes
# Prints PASS or FAIL per part. Exit code: 0 all passed, 1 one failed, 77 there is no GPU.
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
all_parts=(exact memcheck racecheck bench)
read -ra parts <<<"${PARTS:-${all_parts[*]}}"
out=${OUT:-$(mktemp -d /tmp/wsync-gpu.XXXXXX)}
tests=(encode_gpu_test load_gpu_test golden_gpu_test)
export WSYNC_TEST_DATA=$root/tests/data

# limited SECONDS NAME COMMAND...: runs it with a time limit and a log of that name; what failed shows its log's end.
limited() {
  local seconds=$1 log=$out/$2.log status
  shift 2
  timeout --kill-after=5 "$seconds" "$@" >"$log" 2>&1
  status=$?
  [ $status -ne 0 ] || return 0
  [ $status -ne 124 ] || echo "  not done after $seconds s: $*"
  echo "  exit code $status: $*"
  tail -n 40 "$log" | sed 's/^/  | /'
  return 1
}

# Bytes, scales, digests: the kernels against their host twins and against what published quantizers gave. A test that
# is skipped says nothing, so it fails the part.
part_exact() {
  local status=0 test
  for test in "${tests[@]}"; do
    limited 60 "exact-$test" "$bin/$test" --gtest_brief=1 || status=1
    if grep -q SKIPPED "$out/exact-$test.log"; then
      echo "  $test was skipped"
      status=1
    fi
  done
  return $status
}

# sanitized TOOL OPTIONS...: the same tests, smaller. Allocations are set apart, so that a read beyond one is seen.
sanitized() {
  local status=0 test
  if ! command -v compute-sanitizer >/dev/null; then
    echo "  no compute-sanitizer on PATH: it comes with the CUDA toolkit"
    return 1
  fi
  for test in "${tests[@]}"; do
    WSYNC_GPU_TEST_SMALL=1 limited 100 "$1-$test" \
      compute-sanitizer --tool "$@" --error-exitcode 9 --print-limit 20 "$bin/$test" --gtest_brief=1 || status=1
  done
  return $status
}
part_memcheck() { sanitized memcheck --padding 256; }
part_racecheck() { sanitized racecheck; }

# Rates beside the device's own copy rate; what it prints is the result.
part_bench() {
  local status=0
  limited 60 bench "$bin/kernels_gpu_bench" --min-ratio "${MIN_RATIO:-0}" || status=1
  limited 60 bench-channel "$bin/kernels_gpu_bench" qwen2.5-7b --granularity channel || status=1
  limited 60 bench-json "$bin/kernels_gpu_bench" --output json || status=1
  cat "$out/bench.log" "$out/bench-channel.log"
  return $status
}

for part in "${parts[@]}"; do
  if ! declare -F "part_$part" >/dev/null; then
    echo "run.sh: no part '$part'; there are: ${all_parts[*]}" >&2
    exit 1
  fi
done
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi --list-gpus | grep .; then
  echo "SKIPPED: no GPU: nvidia-smi finds none"
  exit 77
fi
mkdir -p "$out"
if [ $# -gt 0 ]; then
  bin=$(cd "$1" && pwd) || exit 1
else
  "$root/deploy/build.sh" release wsync_tests_gpu || exit 1
  bin=$root/build/release/bin
fi

failed=()
for part in "${parts[@]}"; do
  echo "== $part"
  start=$SECONDS
  if "part_$part"; then
    echo "PASS $part ($((SECONDS - start)) s)"
  else
    echo "FAIL $part ($((SECONDS - start)) s)"
    failed+=("$part")
  fi
done
echo "Logs: $out"
if [ ${#failed[@]} -gt 0 ]; then
  echo "FAILED: ${failed[*]}"
  exit 1
fi
echo "PASSED: ${parts[*]}"
