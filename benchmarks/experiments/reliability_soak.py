"""Watches memory, file descriptors and threads of a long `train`, its workers included."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments.reliability_commands import Commands, cases, prepare, session

EVERY_S = 10.0
WARM_UP = 0.2
"""Share of the samples, from the start, that no slope is taken of."""
FLAT = 0.02
"""Share by which a flat line may rise in an hour."""
PAGE_MB = 4096 / 2**20


def sample(leader: int) -> tuple[float, int, int]:
    """(resident MB, file descriptors, threads) of all processes of a session."""
    megabytes, descriptors, threads = 0.0, 0, 0
    for pid in session(leader):
        process = Path(f"/proc/{pid}")
        # One that ends meanwhile counts as gone.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            counts = [len(list((process / kind).iterdir())) for kind in ("fd", "task")]
            megabytes += int((process / "statm").read_text().split()[1]) * PAGE_MB
            descriptors += counts[0]
            threads += counts[1]
    return megabytes, descriptors, threads


def soak(work: Path, minutes: float) -> dict[str, Any]:
    """A record of `train` for that long: slopes per hour, a few samples, and whether they are flat."""
    with Commands(work) as commands:
        train = next(case for case in cases(*prepare(commands, work)) if case.name == "train")
    arguments = [*train.command(work / "soak"), "--updates", "1000000", "--optimizer.lr", "1e-9"]
    arguments += ["--eval-every", "20", "--checkpoint-every", "10"]
    with (work / "soak.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "simplevla.cli", *arguments], stdout=log, stderr=log, start_new_session=True
        )
        started, samples = time.monotonic(), []
        while time.monotonic() - started < 60 * minutes and process.poll() is None:
            time.sleep(EVERY_S)
            if process.poll() is None:
                samples.append((time.monotonic() - started, *sample(process.pid)))
        ended = process.poll()
        process.kill()
        process.wait()
    last = (work / "soak.log").read_text().splitlines()[-1]
    assert ended is None, f"the run ended by itself with exit code {ended}: {last}"
    rows = np.array(samples)
    kept = rows[int(WARM_UP * len(rows)) :]
    slopes = [round(float(np.polyfit(kept[:, 0] / 3600, kept[:, column], 1)[0]), 1) + 0.0 for column in (1, 2, 3)]
    means = kept[:, 1:].mean(0)
    shown = rows[np.linspace(0, len(rows) - 1, 8).round().astype(int)]
    return {
        "soak_minutes": minutes,
        "updates": sum(1 for _ in (work / "soak" / "metrics.jsonl").open()),
        "samples": len(rows),
        "megabytes_per_hour": slopes[0],
        "descriptors_per_hour": slopes[1],
        "threads_per_hour": slopes[2],
        "flat": bool(all(slope <= FLAT * mean for slope, mean in zip(slopes, means, strict=True))),
        "table": [[round(float(row[0]) / 60, 1), round(float(row[1])), int(row[2]), int(row[3])] for row in shown],
    }
