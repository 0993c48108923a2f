#!/usr/bin/env bash
# Tests the page in Chromium against the program: `tests/page/run.sh [PROGRAM]`. Without PROGRAM it is built.
# Needs Node 20.15 or newer. CHROMIUM names a browser; without it /usr/bin/chromium is taken,
# or installed.
set -euo pipefail
PROGRAM=${1:+$(realpath "$1")}
cd "$(dirname "$0")"

if [ -n "$PROGRAM" ]; then
  ANIMATELCM=$PROGRAM
else
  cargo build
  ANIMATELCM=$(realpath "${CARGO_TARGET_DIR:-../../target}/debug/animatelcm")
fi
export ANIMATELCM
browser() { # Debian's package, or else the build that playwright-core knows.
  [ -x "${CHROMIUM:-/usr/bin/chromium}" ] ||
    apt-get install -y --no-install-recommends chromium >/dev/null 2>&1 ||
    npx playwright-core install --with-deps chromium-headless-shell
}
if ! { npm ci --no-audit --no-fund --silent && browser; }; then
  echo "SKIPPED: the page was not tested, as Node's packages or Chromium cannot be installed here" >&2
  exit 0
fi
npm test
