"""Are the frames that we read of datasets by LeRobot's own writers those that were recorded?

Each writer lives in an environment of its own, whose Python is given: LeRobot 0.3.3 (v2.1) and 0.4.4 on Python 3.11,
0.6.1 on 3.12. Videos need FFmpeg's libraries. LeRobot's other dependencies, for robots, are left out:

    python -m venv ENV
    ENV/bin/pip install torch==2.14.1 torchvision==0.29.1 torchcodec==0.17.0
    ENV/bin/pip install --no-deps lerobot==0.6.1
    ENV/bin/pip install "datasets>=4.8,<5" "pandas<3" "av>=15,<16" jsonlines "numpy<2.3" einops "draccus<0.12" \
        "huggingface-hub<2" "gymnasium>=1.1.1" safetensors "packaging<26" termcolor accelerate deepdiff
    python -m benchmarks.experiments.lerobot_formats ENV/bin/python ...

Pictures in data files are compared with what was recorded, those in videos with what LeRobot's own loader returns.
Writes docs/results/lerobot_formats.json and .md.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.support.machine import this_machine
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.evaluation.provenance import commit
from simplevla.reading import ReadingConfig
from simplevla.storage import write_atomically, write_json

OUT = Path("docs/results/lerobot_formats.json")
WRITER = Path(__file__).parents[1] / "support/lerobot_writer.py"
NAMES = {"fixed": "observation.images.image", "wrist": "observation.images.image2"}


def check(folder: Path, known: dict[str, np.ndarray], scratch: Path) -> dict[str, Any]:
    """Reads a dataset whole and by the part, and counts the frames that equal the `known` ones."""
    reading = ReadingConfig(cameras=tuple(f"{name}={key}" for name, key in NAMES.items()))
    dataset = LeRobotDataset(folder, reading)
    frames, streamed = dataset.load_all(), dataset.streamed(scratch)
    pictures = "loaded" if (folder / "videos").exists() else "recorded"
    equal = np.array([dataset.instructions[task] for task in frames.task_index]) == known["loaded/task"]
    equal &= (frames.state == known["recorded/observation.state"]).all(1)
    equal &= (frames.actions == known["recorded/action"]).all(1)
    largest = 0
    every = np.arange(dataset.num_frames)
    for name, key in NAMES.items():
        expected = known[f"{pictures}/{key}"].astype(int)
        for images in (frames.images[name], streamed.images[name][every]):
            away = np.abs(images - expected).reshape(dataset.num_frames, -1).max(1)
            equal &= away == 0
            largest = max(largest, int(away.max()))
    some = LeRobotDataset(folder, ReadingConfig(cameras=reading.cameras[:1], episodes="1,3:")).load_all()
    rows = np.isin(frames.episode_index, (1, *range(3, dataset.num_episodes)))
    assert np.array_equal(some.images["fixed"], np.asarray(frames.images["fixed"])[rows])
    return {
        "versions": json.loads(str(known["versions"])),
        "format": dataset.info["codebase_version"],
        "pictures": "videos" if pictures == "loaded" else "images",
        "compared_with": "LeRobot's own loader" if pictures == "loaded" else "what was recorded",
        "episodes": dataset.num_episodes,
        "data_files": len(list(folder.glob("data/*/*.parquet"))),
        "frames": dataset.num_frames,
        "equal_frames": int(equal.sum()),
        "largest_difference_of_a_pixel": largest,
    }


def page(result: dict[str, Any]) -> str:
    rows = result["rows"]
    equal, frames = (sum(row[key] for row in rows) for key in ("equal_frames", "frames"))
    lines = [
        "# Datasets by LeRobot's own writers",
        "",
        f"{equal} of {frames} frames that LeRobot's own writers wrote in {len(rows)} datasets are read as they are.",
        "",
        "| LeRobot | format | pictures, compared with | episodes in files | equal frames |",
        "|---|---|---|---|---|",
        *(
            f"| {row['versions']['lerobot']} | {row['format']} | {row['pictures']}, {row['compared_with']} | {row['episodes']} in "
            f"{row['data_files']} | {row['equal_frames']} of {row['frames']} |"
            for row in rows
        ),
        "",
        "- A frame is equal if state, action, instruction and all pixels of both cameras are, decoded at once and on demand; the "
        "episodes 1 and 3 to 4 are read alone too, through one camera.",
        "- The writers ran on "
        + ", ".join(
            dict.fromkeys(f"Python {row['versions']['python']} with torch {row['versions']['torch']}" for row in rows)
        )
        + ".",
        "- The schema is that of `lerobot/libero`, two cameras, a state of 8 and an action of 7, with smaller pictures.",
        f"- Command: `{result['command']}`. Commit {result['commit']}. Data: `lerobot_formats.json`.",
        f"- Machine: {result['machine']}.",
    ]
    return "\n".join(lines) + "\n"


def main(pythons: list[str]) -> None:
    rows = []
    for python in pythons:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            log = subprocess.run(
                [python, WRITER, folder / "made"], capture_output=True, text=True, env=dict(os.environ)
            )
            if log.returncode:
                sys.exit(f"{python}: {log.stderr[-2000:]}")
            for kind in ("images", "videos"):
                known = dict(np.load(folder / f"made/{kind}.npz"))
                rows.append(check(folder / "made" / kind, known, folder / "spill"))
                print(json.dumps(rows[-1]))
    result = {
        "command": "python -m benchmarks.experiments.lerobot_formats ENV/bin/python ...",
        "commit": commit(),
        "machine": this_machine(),
        "rows": rows,
    }
    write_json(OUT, result)
    write_atomically(OUT.with_suffix(".md"), page(result).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
