# shellcheck shell=bash
# For the suites' `run` scripts: the binary under test, and environments that are kept outside the clone.
# REQUIRE_ALL=1 makes a failure of what would be skipped.

support="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/lockstep-clients"
export PYTHONPATH="$support${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1

# Says loudly that something is not tried.
skipped() {
  printf '\n!! SKIPPED: %s\n\n' "$1" >&2
  [ -z "${REQUIRE_ALL:-}" ] || exit 1
}

# Sets LOCKSTEP_BIN: the one that is named, else one that is built, else builds one.
find_binary() {
  local root target
  root="$(cd "$support/../.." && pwd)"
  target="${CARGO_TARGET_DIR:-$root/target}"
  LOCKSTEP_BIN="${1:-${LOCKSTEP_BIN:-}}"
  if [ -z "$LOCKSTEP_BIN" ]; then
    LOCKSTEP_BIN="$target/release/lockstep"
    [ -x "$LOCKSTEP_BIN" ] || LOCKSTEP_BIN="$target/debug/lockstep"
    [ -x "$LOCKSTEP_BIN" ] || cargo build --locked --manifest-path "$root/Cargo.toml" --bin lockstep
  fi
  if [ ! -x "$LOCKSTEP_BIN" ]; then
    echo "no server at $LOCKSTEP_BIN: build it first, or name one" >&2
    exit 1
  fi
  LOCKSTEP_BIN="$(realpath "$LOCKSTEP_BIN")"
  export LOCKSTEP_BIN
}

# Prints the key of files' contents and the named versions.
key_of() {
  local version="$1"
  shift
  { echo "$version"; cat "$@"; } | sha256sum | cut -c1-16
}

# make_once FOLDER COMMAND...: runs the command in the new folder, unless that was done before. What has not
# been used for a month goes.
make_once() {
  local folder="$1"
  shift
  mkdir -p "$cache"
  (
    flock 9
    if [ ! -e "$folder/.complete" ]; then
      rm -rf "$folder"
      mkdir -p "$folder"
      (cd "$folder" && "$@" >&2) || { rm -rf "$folder"; exit 1; }
    fi
    touch "$folder/.complete"
    find "$cache" -mindepth 2 -maxdepth 2 -name .complete -mtime +30 -printf '%h\0' | xargs -0r rm -rf
  ) 9> "$folder.lock"
}

fill_venv() {
  python3 -m venv . && bin/pip install --quiet --disable-pip-version-check -r "$1"
}

# venv_for NAME REQUIREMENTS: sets `venv` to an environment with these, or fails.
venv_for() {
  venv="$cache/$1-$(key_of "$(python3 --version)" "$2")"
  make_once "$venv" fill_venv "$2"
}

fill_node_modules() {
  cp "$1/package.json" "$1/package-lock.json" . && npm ci --silent --no-audit --no-fund
}

# node_modules_for FOLDER: sets and exports `NODE_MODULES_AT` to a folder with what that folder's package.json
# names, or fails.
node_modules_for() {
  command -v node > /dev/null && command -v npm > /dev/null || return 1
  NODE_MODULES_AT="$cache/node-$(key_of "$(node --version)" "$1/package.json" "$1/package-lock.json")"
  export NODE_MODULES_AT
  make_once "$NODE_MODULES_AT" fill_node_modules "$1"
}

fill_prometheus() {
  # As whoever runs this, because apt's own user may not write here.
  local get=(apt-get -qq -o APT::Sandbox::User="$(id -un)")
  "${get[@]}" download prometheus || { "${get[@]}" update && "${get[@]}" download prometheus; } || return 1
  dpkg -x prometheus_*.deb . && rm prometheus_*.deb
}

# prometheus_in_path: sees to it that prometheus and promtool are found, or fails.
prometheus_in_path() {
  if command -v prometheus > /dev/null && command -v promtool > /dev/null; then return 0; fi
  command -v apt-get > /dev/null && command -v dpkg > /dev/null || return 1
  local folder
  folder="$cache/prometheus-$(key_of "$(dpkg --print-architecture)" /etc/os-release)"
  make_once "$folder" fill_prometheus || return 1
  PATH="$folder/usr/bin:$PATH"
}
