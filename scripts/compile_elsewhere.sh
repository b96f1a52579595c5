#!/usr/bin/env bash
# Compiles core against what this machine does not have: oneDNN 3 (Debian 13's headers), and arm64.
# Nothing is linked or run. usage: compile_elsewhere.sh FOLDER, which keeps the headers
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=$(realpath -m "$1")
jobs=${JOBS:-$(nproc)}
flags=(-std=c++20 -Wall -Wextra -Wno-unused-parameter -O1 -I. "-DADAPTERD_VERSION=\"0\"" -c -o /dev/null)

# Debian 13's libdnnl-dev, from the mirror that this machine uses.
fetch_onednn3() {
  [[ -d $folder/onednn3/usr/include/oneapi ]] && return
  local apt=$folder/apt mirror
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
  # shellcheck disable=SC2016 # apt expands it
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -n 1)
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$apt/sources.list"
  local options=(-q -o "Dir::Etc::SourceList=$apt/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$apt/lists" -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User=root)
  apt-get "${options[@]}" update >/dev/null
  (cd "$apt" && apt-get "${options[@]}" download libdnnl-dev >/dev/null)
  dpkg-deb -x "$apt"/libdnnl-dev_*.deb "$folder/onednn3"
}

# Headers that are the same for all CPUs, apart from this machine's own libc.
link_headers() {
  local name into=$folder/headers
  mkdir -p "$into"
  for name in absl fmt nlohmann oneapi openssl pcre2.h spdlog sqlite3.h; do
    ln -sfn "/usr/include/$name" "$into/$name"
  done
  mkdir -p "$into/arch"
  ln -sfn "/usr/include/$(gcc -print-multiarch)/openssl" "$into/arch/openssl"
}

compile() { # WHAT COMPILER [FLAGS] -- SOURCES
  local what=$1 compiler=$2 extra=()
  shift 2
  while [[ $1 != -- ]]; do
    extra+=("$1")
    shift
  done
  shift
  printf '%s\n' "$@" | xargs -P "$jobs" -n 1 "$compiler" "${flags[@]}" "${extra[@]}"
  echo "$what: $# sources compile"
}

fetch_onednn3
link_headers
version=$(sed -n 's/^#define DNNL_VERSION_M[AI][JN]OR //p' \
  "$folder/onednn3/usr/include/oneapi/dnnl/dnnl_version.h" | paste -sd.)
compile "oneDNN $version" g++ -isystem "$folder/onednn3/usr/include" -- core/compute/*.cc
compile arm64 aarch64-linux-gnu-g++ -isystem "$folder/headers" -isystem "$folder/headers/arch" -- core/*/*.cc
