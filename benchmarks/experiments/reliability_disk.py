"""Lets the disk be full at some moment of a command, then makes space and lets it go on."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.experiments.reliability_commands import Case, Commands, cases, prepare
from benchmarks.experiments.reliability_kills import Reference, finish, reference
from benchmarks.experiments.reliability_tally import Tally

SIZE = 64 << 20
"""Bytes of the small disk."""
MOMENTS = {"demos": 3, "sft": 4, "train": 4, "continual": 4}
"""Command -> how many sizes of the space that is left, spread evenly from none to what it needs."""


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system in memory of `SIZE` bytes.

    Raises:
        PermissionError: mounting needs root.
    """
    if os.geteuid() != 0:
        raise PermissionError("a small disk has to be mounted, which needs root; leave out the part `disk`")
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def used(folder: Path) -> int:
    """Bytes that a file system's files take."""
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def full_disk(work: Path) -> Tally:
    """Each command with too little space at each of its moments."""
    tally = Tally()
    with Commands(work) as commands, small_disk(work / "disk") as disk:
        for case in cases(*prepare(commands, work)):
            moments = MOMENTS.get(case.name, 0)
            folder = disk / case.name / "run"
            if not moments:
                continue
            folder.parent.mkdir()
            straight = reference(commands, case, folder)
            needed = used(disk)
            subprocess.run(["rm", "-rf", str(folder)], check=True)
            for moment in range(moments):
                left = needed * moment // moments
                tally.add(case.name, one_moment(commands, case, folder, left, straight, tally))
            subprocess.run(["rm", "-rf", str(folder.parent)], check=True)
    return tally


def one_moment(commands: Commands, case: Case, folder: Path, left: int, straight: Reference, tally: Tally) -> list[str]:
    """The problems of one try with `left` bytes of space."""
    ballast = folder.parent.parent / "ballast"
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, SIZE - used(ballast.parent) - left)
    ended = commands.run(case.command(folder), **case.order)
    problems = tally.look_at(ended)
    errors = [line for line in ended.errors.splitlines() if line.startswith("error: ")]
    told = len(errors) == 1 and str(folder.parent) in errors[0] and "Free space" in errors[0]
    if ended.code == 0 or not told:
        problems.append(f"exit code {ended.code}, expected one line with file and remedy: {ended.last}")
    ballast.unlink()
    problems += finish(commands, case, folder, straight.end, tally)
    return [f"{left >> 10} KiB left", *problems] if problems else []
