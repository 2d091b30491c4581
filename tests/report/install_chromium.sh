#!/usr/bin/env bash
# A browser for tests/report/test_page_in_browser.py, where this machine has none and lets itself be changed; the test skips without one.
set -euo pipefail
for name in chromium chromium-browser google-chrome; do
  if command -v $name >/dev/null; then exit 0; fi
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "no Chromium here, and no way to install it: the browser test will skip"
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q && apt-get install -qy --no-install-recommends chromium || echo "Chromium could not be installed: the browser test will skip"
