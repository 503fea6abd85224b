#!/usr/bin/env bash
# Libraries for rendering without a screen (EGL and OSMesa on Mesa's software rasteriser). Does nothing where they are.
set -eu
packages="libosmesa6 libegl1 libegl-mesa0 libgl1-mesa-dri libgl1"
[ "$(uname -s)" = Linux ] || exit 0
if ldconfig -p | grep -q 'libEGL\.so' && ldconfig -p | grep -q 'libOSMesa\.so' && ldconfig -p | grep -q 'libGL\.so'; then exit 0; fi
if ! command -v apt-get >/dev/null; then
  echo "Rendering needs EGL and OSMesa (Debian: $packages). Install them with your package manager." >&2
  exit 0
fi
if [ "$(id -u)" != 0 ]; then
  echo "Rendering needs system packages. Run: sudo apt-get install $packages   and then this command again." >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $packages
