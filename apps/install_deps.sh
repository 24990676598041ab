#!/usr/bin/env bash
# Installs what a build of Inkling needs on Debian 12 (or a relative of it). Does nothing when all of it is there.
#   apps/install_deps.sh [EXTRA_PACKAGE ...]
set -euo pipefail

packages=(
  g++ cmake ninja-build pkg-config
  libspdlog-dev nlohmann-json3-dev libcli11-dev libpcre2-dev libsentencepiece-dev libssl-dev
  doctest-dev python3 curl ca-certificates
  "$@"
)

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if [ "${#missing[@]}" -eq 0 ]; then exit 0; fi

if ! command -v apt-get >/dev/null; then
  echo "inkling: missing: ${missing[*]}; install them with your package manager and try again" >&2
  exit 1
fi
echo "inkling: installing ${missing[*]}" >&2
as_root=()
if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq >&2
"${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
