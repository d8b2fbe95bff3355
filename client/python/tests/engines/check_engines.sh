#!/usr/bin/env bash
# Checks the adapters and recipes against the real vLLM, SGLang and verl, without a GPU:
#   client/python/tests/engines/check_engines.sh BIN ENVS [pytest options...]
# BIN holds the daemons. ENVS/vllm and ENVS/sglang become virtual environments of Python 3.11 that later runs use again:
# about 10 GB each, most of it CUDA libraries that nothing here calls, and 15 minutes to fetch. 6 GB of memory, 5 minutes
# to run. Models are made on the spot. An engine that cannot be installed is named and skipped, and the exit code is 77.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "$1" && pwd)
mkdir -p "$2"
envs=$(cd "$2" && pwd)
shift 2
python=${PYTHON:-python3.11}

declare -A pins=(
  [vllm]="vllm==0.33.0 torch==2.14.0 transformers==5.20.2"
  [sglang]="sglang==0.5.23 torch==2.14.1 transformers==5.19.0"
)
verl=verl==0.9.1 # its sources; ray and the rest of what it needs are played

make_env() { # engine
  local env=$envs/$1
  [ "$(cat "$env/pins" 2>/dev/null)" != "${pins[$1]} $verl" ] || return 0
  rm -rf "$env"
  "$python" -m venv "$env" &&
    # shellcheck disable=SC2086 # words
    "$env/bin/pip" install -q --disable-pip-version-check ${pins[$1]} pytest pytest-timeout ml_dtypes &&
    "$env/bin/pip" install -q --disable-pip-version-check --no-deps "$verl" && echo "${pins[$1]} $verl" >"$env/pins"
}

# Their extension modules want a driver to be there to be imported: the toolkit's stub, where there is none.
if ! ldconfig -p | grep -q libcuda.so.1; then
  stub=$(find /usr/local/cuda*/ -path '*stubs/libcuda.so' 2>/dev/null | sort | tail -1)
  [ -n "$stub" ] || { echo "check_engines skipped: neither a CUDA driver nor the toolkit's stub of one"; exit 77; }
  mkdir -p "$envs/stub"
  ln -sf "$stub" "$envs/stub/libcuda.so.1"
  export LD_LIBRARY_PATH=$envs/stub${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi

export WSYNC_BIN=$bin PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=.
cd "$here/.." # conftest.py's folder, not beside the package's sources: the installed package is what is tested
result=0
for engine in vllm sglang; do
  if ! make_env "$engine"; then
    echo "check_engines: $engine skipped, ${pins[$engine]} could not be installed with $python"
    [ $result != 0 ] || result=77
    continue
  fi
  "$envs/$engine/bin/python" -m pip install -q --disable-pip-version-check --no-deps --force-reinstall "$here/../.."
  files=("engines/test_$engine.py")
  [ "$engine" != sglang ] || files+=(engines/test_recipes.py)
  "$envs/$engine/bin/python" -m pytest -q -rs -p no:cacheprovider -W ignore "$@" "${files[@]}" || result=1
done
exit $result
