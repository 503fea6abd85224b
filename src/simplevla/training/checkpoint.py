"""Checkpoints that survive a kill, a full disk and a damaged file. A checkpoint is a folder `update_000012/`:

    policy/                 what `Policy.save` writes
    optimizer.safetensors   AdamW's moments and float32 masters, by parameter name
    behaviour.safetensors   where rollouts run ahead: trained parameters of the policy that had begun the next ones
    state.json              counters, sampler position, length of metrics.jsonl
    manifest.json           size and sha256 of every other file

It is written under a hidden temporary name, flushed to disk and renamed, so that a folder of that name is complete.
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from simplevla import checked
from simplevla.errors import UserError
from simplevla.policies.base import Policy
from simplevla.storage import atomic_folder, read_as, read_json

FORMAT = 1
"""Raised when the layout changes; an older program then refuses by name instead of misreading."""


class CheckpointDamaged(UserError):
    """A checkpoint's files are not what its manifest promises."""


@checked.dataclass(frozen=True, kw_only=True)
class Described:
    """Size and fingerprint of a file."""

    bytes: int
    sha256: str


@checked.dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of manifest.json."""

    format: int
    files: dict[str, Described]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    folder: Path
    state: dict[str, Any]
    """State that `save_checkpoint` was given, plain JSON."""

    @property
    def policy(self) -> Path:
        """Folder for `load_policy`."""
        return self.folder / "policy"

    def optimizer(self) -> dict[str, Tensor]:
        """The tensors of `Learner.optimizer_state`."""
        return safetensors.torch.load_file(self.folder / "optimizer.safetensors")

    def behaviour(self) -> dict[str, Tensor]:
        """Behaviour weights that `save_checkpoint` was given; empty if there were none."""
        file = self.folder / "behaviour.safetensors"
        return safetensors.torch.load_file(file) if file.exists() else {}


def save_checkpoint(
    folder: Path,
    update: int,
    policy: Policy,
    optimizer: dict[str, Tensor],
    state: dict[str, Any],
    keep: int,
    behaviour: dict[str, Tensor] | None = None,
) -> Path:
    """Writes the checkpoint after `update` updates into `folder` and deletes all but the newest `keep`.

    Raises:
        OSError: nothing could be written; earlier checkpoints are untouched.
    """
    target = folder / f"update_{update:06d}"
    with atomic_folder(target) as temporary:
        (temporary / "policy").mkdir()
        policy.save(temporary / "policy")
        _write_tensors(temporary / "optimizer.safetensors", optimizer)
        if behaviour:
            _write_tensors(temporary / "behaviour.safetensors", behaviour)
        (temporary / "state.json").write_text(json.dumps({**state, "update": update}, indent=1) + "\n")
        manifest = Manifest(format=FORMAT, files=_describe(temporary))
        (temporary / "manifest.json").write_text(json.dumps(asdict(manifest), indent=1) + "\n")
    for old in list_checkpoints(folder)[:-keep]:
        doomed = old.with_name(f".{old.name}.tmp")
        os.rename(old, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return target


def _write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """Writes from where the tensors lie: as bytes they would fill the memory once more."""
    file.touch()
    mode = file.stat().st_mode
    safetensors.torch.save_file(tensors, file)
    # safetensors' own files are their owner's alone.
    file.chmod(mode)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first; unfinished ones have other names."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if re.fullmatch(r"update_\d{6,}", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("update_")))


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest intact checkpoint, or None if the run was stopped before its first one.

    A damaged checkpoint is named in a warning and the one before it is used.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    found = list_checkpoints(folder)
    problems = []
    for path in reversed(found):
        try:
            checkpoint = verify(path)
        except CheckpointDamaged as error:
            problems.append(str(error))
            continue
        for problem in problems:
            warnings.warn(f"{problem} Using {path.name} instead.", stacklevel=2)
        return checkpoint
    if problems:
        raise UserError("no intact checkpoint is left: " + " ".join(problems) + " Start the run again.")
    return None


def verify(path: Path) -> Checkpoint:
    """The checkpoint at `path`, each file compared with the manifest.

    Raises:
        CheckpointDamaged: naming the first file that is missing, too much, or not as written.
    """
    try:
        manifest = read_as(path / "manifest.json", Manifest)
    except (OSError, UserError) as error:
        raise CheckpointDamaged(
            f"checkpoint {path} is damaged: manifest.json is missing or unreadable ({error})."
        ) from error
    if manifest.format != FORMAT:
        raise CheckpointDamaged(f"checkpoint {path} has format {manifest.format}; this version reads {FORMAT}.")
    promised, found = manifest.files, _describe(path)
    for name in sorted({*promised, *found}):
        if promised.get(name) != found.get(name):
            got, expected = found.get(name), promised.get(name)
            raise CheckpointDamaged(f"checkpoint {path} is damaged: {name} is {_say(got)}; expected {_say(expected)}.")
    return Checkpoint(folder=path, state=read_json(path / "state.json"))


def _describe(folder: Path) -> dict[str, Described]:
    """Relative name -> size and sha256 of every file below `folder` but the manifest."""
    described = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"):
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        described[file.relative_to(folder).as_posix()] = Described(bytes=file.stat().st_size, sha256=digest)
    return described


def _say(entry: Described | None) -> str:
    return "absent" if entry is None else f"{entry.bytes} bytes with sha256 {entry.sha256[:12]}"
