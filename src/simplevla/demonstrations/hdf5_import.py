"""Converts HDF5 demonstrations to a LeRobotDataset v3.0; interrupted, the same call goes on to the same bytes."""

import hashlib
import json
import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from simplevla.demonstrations import layout
from simplevla.demonstrations.hdf5 import natural, open_hdf5
from simplevla.demonstrations.hdf5_layouts import Recording, demonstrations_in, describe
from simplevla.demonstrations.hdf5_reading import read
from simplevla.demonstrations.hdf5_settings import HDF5Settings
from simplevla.demonstrations.writer import DatasetWriter, changed
from simplevla.errors import UserError
from simplevla.progress import tracked
from simplevla.storage import read_json
from simplevla.suites.base import SuiteSpec
from simplevla.terminal import Console

SUFFIXES = (".hdf5", ".h5")
NOUNS = {
    "sizes": "cameras",
    "state_names": "dimensions of the state",
    "action_names": "dimensions of the action",
    "fps": "frames per second",
}
THREADS = min(8, os.cpu_count() or 1)
"""Threads that make PNG files; zlib lets them run side by side."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Content of an imported dataset, and what was left out."""

    episodes: int
    frames: int
    fps: float
    cameras: dict[str, tuple[int, int]]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    instructions: tuple[str, ...]
    late: int
    """Episodes of LIBERO in which each observation was paired with the next row's action."""
    left_out: dict[str, str]
    """Recording -> why."""

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {height} x {width}" for name, (height, width) in self.cameras.items())
        lines = [
            f"taken: {self.episodes} episodes, {self.frames} frames at {self.fps:g} per second, {len(self.instructions)} instructions "
            f"(the first: {self.instructions[0]!r})",
            f"cameras: {sizes}; state: {', '.join(self.state_names)}; actions: {', '.join(self.action_names)}",
        ]
        if self.late:
            lines.append(
                f"in {self.late} episodes each row was seen after its action, so it is paired with the next one: a frame less each"
            )
        lines += [f"left out: {len(self.left_out)}", *(f"  {name}: {why}" for name, why in self.left_out.items())]
        return "\n".join(lines)


def import_hdf5(
    source: Path, folder: Path, settings: HDF5Settings, skip_broken: bool = False, progress: bool = True
) -> Report | None:
    """Writes the demonstrations of the file or folder `source` to `folder`; None if that was finished before.

    Raises:
        UserError: something doesn't fit the layout or is broken, without `skip_broken`; nothing can be used; `folder`
            holds something else.
        OSError: no space or no permission; what is finished is kept.
    """
    console = Console(quiet=not progress)
    files = _files(source)
    with tracked(files, "looking at files", console) as looked_at:
        recordings, left_out = _look(looked_at, settings, skip_broken)
    _require_some(recordings, left_out, source)
    if any(one.task is None for one in recordings):
        # A dataset names the tasks of all episodes or of none.
        recordings = [replace(one, task=None) for one in recordings]
    first = recordings[0]
    if first.fps is None:
        raise UserError(f"{first.path} says nowhere how many frames a second has; give --fps (ALOHA's have 50)")
    about = _about(source, recordings, settings)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        _check_finished(folder, about)
        console.print(f"{folder} is finished already", soft_wrap=True)
        return None
    taken: list[Recording] = []
    with (
        DatasetWriter(folder, _spec(first), [one.instruction for one in recordings], about) as writer,
        ThreadPoolExecutor(THREADS) as threads,
        tracked(recordings, "importing", console) as importing,
    ):
        done = _done(writer)
        if done:
            console.print(f"continuing {writer.partial} after {len(done)} episodes", soft_wrap=True)
        skipped = 0
        for number, recording in enumerate(importing):
            if number not in done:
                try:
                    episode = read(recording, settings, threads)
                except UserError as error:
                    if not skip_broken:
                        raise
                    left_out[str(recording)] = str(error)
                    skipped += 1
                    continue
                if number < max(done, default=0):
                    raise UserError(
                        f"{recording} was broken when {writer.partial} was begun, and isn't now; delete that folder, and import again"
                    )
                writer.add(replace(episode, attempts=1 + skipped))
            taken.append(recording)
            skipped = 0
        _require_some(taken, left_out, source)
        writer.finish()
    return Report(
        episodes=len(taken),
        frames=sum(one.frames for one in taken),
        fps=first.fps,
        cameras=first.sizes,
        state_names=first.state_names,
        action_names=first.action_names,
        instructions=tuple(dict.fromkeys(one.instruction for one in taken)),
        late=sum(one.late for one in taken),
        left_out=left_out,
    )


def _files(source: Path) -> list[Path]:
    """The file, or the HDF5 files in the folder, in natural order."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"{source} doesn't exist; expected an HDF5 file or a folder of them")
    found = [path for path in source.iterdir() if path.suffix in SUFFIXES and not path.name.startswith(".")]
    if not found:
        raise UserError(
            f"{source} has no files *{' or *'.join(SUFFIXES)}; expected the folder that holds the recordings"
        )
    return sorted(found, key=lambda path: natural(path.name))


def _look(files: Iterable[Path], settings: HDF5Settings, skip_broken: bool) -> tuple[list[Recording], dict[str, str]]:
    """All recordings that can be used, and name -> why of those that are left out."""
    recordings: list[Recording] = []
    left_out: dict[str, str] = {}

    def leave_out(name: str, error: UserError) -> None:
        if not skip_broken:
            raise error
        left_out[name] = str(error)

    for path in files:
        try:
            with open_hdf5(path) as file:
                for demo in demonstrations_in(file, settings.layout):
                    try:
                        recording = describe(file, path, demo, settings)
                        _check_alike(recordings[0] if recordings else recording, recording)
                        recordings.append(recording)
                    except UserError as error:
                        leave_out(f"{path.name}, {demo}".removesuffix(", "), error)
        except UserError as error:
            leave_out(path.name, error)
    return recordings, left_out


def _check_alike(first: Recording, other: Recording) -> None:
    """A dataset has the same cameras, state and action throughout."""
    for what in ("sizes", "state_names", "action_names", "fps"):
        expected, got = getattr(first, what), getattr(other, what)
        if got != expected:
            raise UserError(
                f"{other.path}: {other}: the {NOUNS[what]} are {got}; those of {first} are {expected}: choose what all have with "
                "--cameras and --state, or leave it out with --skip-broken"
            )


def _require_some(recordings: list[Recording], left_out: dict[str, str], source: Path) -> None:
    if not recordings:
        name, why = next(iter(left_out.items()))
        raise UserError(f"none of the {len(left_out)} recordings in {source} can be used; {name}: {why}")


def _done(writer: DatasetWriter) -> set[int]:
    """Numbers of the recordings that are written: each episode's `attempts` also count the broken ones before it."""
    attempts = [row["attempts"] for row in writer.episodes]
    return {sum(attempts[: i + 1]) - 1 for i in range(len(attempts))}


def _about(source: Path, recordings: list[Recording], settings: HDF5Settings) -> dict[str, Any]:
    """Settings and recordings that decide the dataset's content, without the place of the files."""
    looked_at = [[str(one), one.path.stat().st_size, one.frames] for one in recordings]
    digest = hashlib.sha256(json.dumps(looked_at).encode()).hexdigest()
    about = asdict(settings) | {"source": source.name, "recordings": len(recordings), "names_and_sizes": digest}
    # Through JSON, since this is compared with what info.json holds.
    return {"hdf5": json.loads(json.dumps(about))}


def _check_finished(folder: Path, about: dict[str, Any]) -> None:
    """Refuses a folder that holds something else than the finished dataset of the same import."""
    info = read_json(folder / layout.INFO) if (folder / layout.INFO).is_file() else {}
    origin = info.get("simplevla")
    differences = changed(origin, about) if isinstance(origin, dict) else ["it was not imported here"]
    if differences:
        raise UserError(
            f"{folder} exists and holds something else ({'; '.join(differences[:3])}); choose another folder or delete it"
        )


def _spec(first: Recording) -> SuiteSpec:
    actions = len(first.action_names)
    return SuiteSpec(
        cameras=first.sizes,
        state_names=first.state_names,
        action_names=first.action_names,
        action_low=(-math.inf,) * actions,
        action_high=(math.inf,) * actions,
        control_hz=first.fps or math.nan,
    )
