"""What `make` says of PyTorch's build before it is downloaded."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "torch_build.sh"
PYTHON = """#!/usr/bin/env bash
case "$*" in
*find_spec*) exit {missing} ;;
*"pip "*--report*) echo '{{"install": [{{"metadata": {{"version": "{version}"}}}}]}}' ;;
*"pip "*) echo "$@" ;;
*) exec {real} "$@" ;;
esac
"""
TOOLS = ("bash", "env", "nvidia-smi")


def said(folder: Path, version: str, gpu: bool = False, missing: int = 1, **environment: str) -> str:
    """Output of the script where pip would install this version."""
    for name in TOOLS[: 3 if gpu else 2]:
        (folder / name).symlink_to(shutil.which(name) or "/bin/true")
    python = folder / "python"
    python.write_text(PYTHON.format(missing=missing, version=version, real=sys.executable))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    settings = {**os.environ, "PATH": str(folder), "TORCH_INDEX": "", **environment}
    done = subprocess.run(
        ["bash", str(SCRIPT), str(python)], capture_output=True, text=True, env=settings, timeout=60, check=True
    )
    return done.stdout


@pytest.mark.parametrize("gpu", [False, True])
def test_the_build_and_its_size_are_said(gpu: bool, tmp_path: Path) -> None:
    text = said(tmp_path, "2.13.0+cpu", gpu)
    assert "CPU build, about 0.2 GB" in text
    assert "No GPU" not in text


@pytest.mark.parametrize("gpu", [False, True])
def test_the_cuda_build_without_a_gpu_says_what_to_set(gpu: bool, tmp_path: Path) -> None:
    text = said(tmp_path, "2.13.0", gpu)
    assert "CUDA build, about 3 GB" in text
    assert ("make TORCH_INDEX=ADDRESS demo" in text) is not gpu


def test_a_given_index_is_installed_from(tmp_path: Path) -> None:
    assert "torch --index-url here/cpu" in said(tmp_path, "2.13.0", TORCH_INDEX="here/cpu")


def test_nothing_is_said_where_torch_is_installed(tmp_path: Path) -> None:
    assert said(tmp_path, "2.13.0", missing=0) == ""
