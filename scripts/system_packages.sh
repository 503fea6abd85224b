#!/usr/bin/env bash
# Drawing without a screen: EGL and OSMesa on Mesa's software rasteriser. With the word `vulkan`: Mesa's software Vulkan
# driver, 24.3 or newer, for ManiSkill's pictures on a machine without a GPU. Does nothing where they are.
set -eu
[ "$(uname -s)" = Linux ] || exit 0
packages="libosmesa6 libegl1 libegl-mesa0 libgl1-mesa-dri libgl1"
what="Rendering" without_apt=0
if [ "${1:-}" = vulkan ]; then
  packages="mesa-vulkan-drivers"
  what="ManiSkill's pictures" without_apt=1
  if ls /usr/share/vulkan/icd.d/nvidia_icd*.json /etc/vulkan/icd.d/nvidia_icd*.json >/dev/null 2>&1; then exit 0; fi
  version=$(dpkg-query -W -f '${Version}' "$packages" 2>/dev/null || true)
  if [ -n "$version" ] && dpkg --compare-versions "$version" ge 24.3; then exit 0; fi
elif ldconfig -p | grep -q 'libEGL\.so' && ldconfig -p | grep -q 'libOSMesa\.so' && ldconfig -p | grep -q 'libGL\.so'; then
  exit 0
fi
if ! command -v apt-get >/dev/null; then
  echo "$what: Mesa's drivers are needed (Debian: $packages). Install them with your package manager." >&2
  exit "$without_apt"
fi
if [ "$(id -u)" != 0 ]; then
  echo "$what: system packages are needed. Run: sudo bash scripts/system_packages.sh ${1:-}   and then this command again." >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
from=""
# shellcheck disable=SC1091
. /etc/os-release
if [ "${1:-}" = vulkan ] && [ "${VERSION_CODENAME:-}" = bookworm ]; then
  # Debian 12's own is 22.3, which lacks an extension that SAPIEN needs. Its backports are where the rest comes from.
  site=$(apt-get indextargets --format '$(CODENAME) $(REPO_URI)' | awk '$1 == "bookworm" { print $2; exit }')
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site bookworm-backports main" \
    >/etc/apt/sources.list.d/bookworm-backports.list
  apt-get update -qq
  from="-t bookworm-backports"
fi
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $from $packages
