#!/usr/bin/env bash
# Every test that needs a GPU, for anyone who has one: tests/gpu/run.sh [BIN_DIR]
#   BIN_DIR   where the programs are, when they were built elsewhere (deploy/build.sh static wsync_tests_gpu
#             wsync_tests_multigpu makes them need no library but libc, and NCCL); without it they are built here.
# In the environment:
#   PARTS="exact bench"  runs these parts only, in this order; all of them: exact memcheck racecheck contract sync faults
#                        python bench sync_bench. Those between GPUs are left out, visibly, where there is only one.
#   SYNC_TESTS=FILTER    only these of the sync part's tests, as --gtest_filter takes them; FAULT_TESTS: of the faults part's
#   WSYNC_SOAK_SYNCS=N   versions of the faults part's soak, with an agent killed every fifty (120; the long run has 1000,
#                        and SOAK_LIMIT=600, the seconds it may take)
#   OUT=DIR              where logs and results go; by default a new directory under /tmp
#   MIN_RATIO=0.93       quantizing must reach this part of the device's own copy rate, or the bench part fails; by
#                        default 0.90; two H200 gave 0.95 (qwen2.5-7b) and 0.93 (qwen3-30b-a3b)
# Prints PASS or FAIL per part. Exit code: 0 all passed, 1 one failed, 77 there is no GPU.
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
all_parts=(exact memcheck racecheck contract sync faults python bench sync_bench)
between_gpus=" sync faults python sync_bench "
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
  limited 60 bench "$bin/kernels_gpu_bench" --min-ratio "${MIN_RATIO:-0.90}" || status=1
  limited 60 bench-channel "$bin/kernels_gpu_bench" qwen2.5-7b --granularity channel || status=1
  limited 60 bench-json "$bin/kernels_gpu_bench" --output json || status=1
  cat "$out/bench.log" "$out/bench-channel.log"
  return $status
}

# The CUDA backend under the contract that every backend is under, and what it does beyond.
part_contract() {
  local status=0 test log
  local contract=(cuda_memory_contract_test cuda_quantizer_contract_test cuda_loader_contract_test cuda_memory_test
    cuda_stream_event_test cuda_nccl_session_test)
  [ "$gpus" -lt 2 ] || contract+=(cuda_transport_contract_test)
  for test in "${contract[@]}"; do
    limited 120 "contract-$test" "$bin/$test" --gtest_brief=1 || status=1
    if grep -q "SKIPPED" "$out/contract-$test.log"; then
      grep -h "SKIPPED" "$out/contract-$test.log" | sort | uniq -c | sed 's/^/  /'
    fi
  done
  return $status
}

# Whole versions through real agents on two GPUs, byte for byte, over NVLink and over sockets, with agents that die.
part_sync() {
  limited 240 sync "$bin/sync_gpu_test" --gtest_filter="${SYNC_TESTS:-*}" || return 1
  grep -E "OK \]|given up" "$out/sync.log" | sed 's/^/  /'
}

# Agents killed and stopped at every step, in the middle of NCCL's work; GPUs without memory; verify --deep; a soak. Each
# cell says how soon its survivors were free, and how soon the next version was there. The cells of the two sides are
# two jobs, which mostly wait, side by side; what takes a GPU's memory away runs alone.
part_faults() {
  local status=0 trainer
  if [ -n "${FAULT_TESTS:-}" ]; then
    limited 600 faults "$bin/faults_gpu_test" --gtest_filter="$FAULT_TESTS" || status=1
  else
    limited 140 faults-trainer "$bin/faults_gpu_test" --gtest_filter="*Cells*/Trainer*" &
    trainer=$!
    limited 140 faults-rollout "$bin/faults_gpu_test" --gtest_filter="*Cells*/Rollout*" || status=1
    wait "$trainer" || status=1
    limited 120 faults-others "$bin/faults_gpu_test" --gtest_filter="GpuMemoryFaults.*:GpuFaults.*" || status=1
    limited "${SOAK_LIMIT:-60}" faults-soak "$bin/soak_gpu_test" || status=1
  fi
  cat "$out"/faults*.log | grep -E "^GPUCELL|^SOAK|refused after|strangers at|memory was taken|OK \]" | sed 's/^/  /'
  return $status
}

# The Python package with torch at both ends, where python3 has torch, pytest and the package.
part_python() {
  if ! python3 -c "import pytest, torch, wsync" >"$out/python.log" 2>&1; then
    echo "SKIPPED python: python3 lacks $(grep -o "named '.*'" "$out/python.log"); pip install ./client/python[test,torch]"
    return 77
  fi
  cd "$root/client/python/tests" || return 1
  WSYNC_BIN=$bin limited 150 python python3 -m pytest -q -rs -p no:cacheprovider test_cuda.py || return 1
  tail -n 1 "$out/python.log" | sed 's/^/  /'
}

# sync_of MODEL SOURCE_MODE SINK_MODE: one benchmark of real agents, feeder and engine.
sync_of() {
  limited 90 "sync-bench-$1-$2-$3" "$bin/wsync" bench --backend cuda --shapes "$1" --source-mode "$2" --sink-mode "$3" ||
    return 1
  cat "$out/sync-bench-$1-$2-$3.log"
  echo
}
part_sync_bench() {
  local status=0 mib
  mib=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -1)
  sync_of qwen2.5-7b full staged || status=1
  sync_of qwen2.5-7b full in_place || status=1
  sync_of qwen2.5-7b ring in_place || status=1
  sync_of qwen3-30b-a3b ring in_place || status=1
  if [ "$mib" -gt 100000 ]; then
    sync_of qwen3-30b-a3b full staged || status=1
  else
    echo "  qwen3-30b-a3b full staged is left out: weights and their encoded copy take 93 GB of $mib MiB"
    sync_of qwen3-30b-a3b ring staged || status=1
  fi
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
  "$root/deploy/build.sh" release wsync_tests_gpu wsync_tests_multigpu || exit 1
  bin=$root/build/release/bin
fi

gpus=$(nvidia-smi --list-gpus | wc -l)
failed=() passed=() skipped=()
for part in "${parts[@]}"; do
  echo "== $part"
  if [ "$gpus" -lt 2 ] && [[ $between_gpus == *" $part "* ]]; then
    echo "SKIPPED $part: needs two GPUs, there is one"
    skipped+=("$part")
    continue
  fi
  start=$SECONDS
  "part_$part"
  status=$?
  if [ $status -eq 77 ]; then
    skipped+=("$part")
  elif [ $status -eq 0 ]; then
    echo "PASS $part ($((SECONDS - start)) s)"
    passed+=("$part")
  else
    echo "FAIL $part ($((SECONDS - start)) s)"
    failed+=("$part")
  fi
done
echo "Logs: $out, after $SECONDS s"
[ ${#skipped[@]} -eq 0 ] || echo "SKIPPED: ${skipped[*]}"
if [ ${#failed[@]} -gt 0 ]; then
  echo "FAILED: ${failed[*]}"
  exit 1
fi
echo "PASSED: ${passed[*]}"
