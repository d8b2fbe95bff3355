#!/usr/bin/env bash
# Installs what building and testing wsync needs, from Debian 12's own packages. Does nothing where all are there.
# CUDA is not installed: CMake uses it where it is and leaves the GPU backend out where it is not.
set -euo pipefail

packages=(
  g++ clang libclang-rt-dev clang-format cmake ninja-build ccache git python3 python3-venv
  libgrpc++-dev protobuf-compiler-grpc libprotobuf-dev protobuf-compiler libabsl-dev
  libspdlog-dev libfmt-dev libyaml-cpp-dev libcli11-dev nlohmann-json3-dev libxxhash-dev
  libre2-dev libgtest-dev libgmock-dev librapidcheck-dev libfiu-dev libssl-dev openssl
  iproute2 nftables
)

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "install_packages.sh: these Debian packages are missing: ${missing[*]}" >&2
    echo "install_packages.sh: run it as root, or install them by hand, and run again" >&2
    exit 1
  fi
  as_root=(sudo)
fi
if ! command -v apt-get >/dev/null; then
  echo "install_packages.sh: no apt-get here; install the equivalents of: ${missing[*]}" >&2
  exit 1
fi
echo "Installing ${#missing[@]} Debian packages: ${missing[*]}"
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
