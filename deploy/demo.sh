#!/usr/bin/env bash
# The main job on one machine: installs packages, builds, and moves five versions of a model from a trainer agent to
# two rollout agents, with one of them killed and brought back on the way. Takes `wsync demo`'s options.
set -euo pipefail
cd "$(dirname "$0")/.."
case " $* " in
  *" -h "*|*" --help "*)
    echo "usage: deploy/demo.sh [options of 'wsync demo', such as --model DIR --keep]"
    exit 0 ;;
esac
deploy/install_packages.sh
deploy/build.sh
exec build/release/bin/wsync demo "$@"
