#!/usr/bin/env bash
# Runs client/python's tests: tests/python/run.sh BIN ENV [pytest options...]. BIN holds the daemons, ENV becomes a
# virtual environment that later runs use again. WSYNC_TEST_TORCH=1 installs torch and transformers as well (5.7 GB on
# disk, 2 to 4 minutes); without them the tests that train skip.
set -euo pipefail
repo=$(cd "$(dirname "$0")/../.." && pwd)
bin=$(cd "$1" && pwd)
env=$2
shift 2

skip() {
  echo "python_test skipped: $1"
  exit 77
}

extras=test
[ "${WSYNC_TEST_TORCH:-0}" != 1 ] || extras=test,torch

# What an installed environment depends on. Third-party packages are fetched again only when pyproject.toml changed.
stamp_of() { cat "$@" | sha256sum | cut -d' ' -f1; }
wanted_all="$extras $(python3 --version) $(stamp_of "$repo/client/python/pyproject.toml")"
wanted_own=$(cd "$repo" && find client/python/wsync client/python/setup.py proto/wsync -name '*.py' -o -name '*.proto' |
  sort | xargs cat | sha256sum)

if [ "$(cat "$env/all.stamp" 2>/dev/null)" != "$wanted_all" ]; then
  rm -rf "$env"
  python3 -m venv "$env" >/dev/null 2>&1 || skip "python3 has no venv module (deploy/install_packages.sh installs it)"
  if "$env/bin/pip" install -q --disable-pip-version-check "$repo/client/python[$extras]"; then
    echo "$wanted_own" >"$env/own.stamp"
    echo "$wanted_all" >"$env/all.stamp" # not where torch is missing: the next run tries again
  else
    [ "$extras" = test ] || echo "torch could not be installed: what needs it skips"
    [ "$extras" != test ] && "$env/bin/pip" install -q --disable-pip-version-check "$repo/client/python[test]" ||
      skip "pip could not install the package's dependencies; is a package index reachable?"
  fi
elif [ "$(cat "$env/own.stamp" 2>/dev/null)" != "$wanted_own" ]; then
  "$env/bin/pip" install -q --disable-pip-version-check --no-deps --force-reinstall "$repo/client/python"
  echo "$wanted_own" >"$env/own.stamp"
fi

export WSYNC_BIN=$bin PYTHONDONTWRITEBYTECODE=1
cd "$repo/client/python/tests"  # not beside the sources: the installed package is what is tested
exec "$env/bin/pytest" -q -rs -p no:cacheprovider "$@"
