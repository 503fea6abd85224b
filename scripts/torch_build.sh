#!/usr/bin/env bash
# Says which build of PyTorch pip is about to install with the Python "$1", and how large it is, before anything is
# downloaded. With TORCH_INDEX set, installs PyTorch from that index.
set -eu
python=$1
if "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; then exit 0; fi
pip() { "$python" -m pip --disable-pip-version-check "$@"; }
if [ -n "${TORCH_INDEX:-}" ]; then
  echo "PyTorch comes from $TORCH_INDEX."
  pip install --quiet -c constraints.txt torch --index-url "$TORCH_INDEX"
  exit 0
fi
# Where pip fails, its own error follows from the installation.
report=$(pip install --quiet --dry-run --no-deps --report - -c constraints.txt torch 2>/dev/null) || exit 0
version=$(echo "$report" | "$python" -c 'import json, sys; print(json.load(sys.stdin)["install"][0]["metadata"]["version"])')
case $version in
*+cpu) echo "PyTorch $version is next: the CPU build, about 0.2 GB to download; all packages together take 2 GB of disk." ;;
*) echo "PyTorch $version is next: the CUDA build, about 3 GB to download; all packages together take 5.5 GB of disk."
  if ! command -v nvidia-smi >/dev/null; then
    echo "No GPU was found here. For the CPU build, a tenth of that, stop now (Ctrl-C) and give the address ending in /cpu from https://pytorch.org/get-started/locally/ as: make TORCH_INDEX=ADDRESS demo"
  fi ;;
esac
