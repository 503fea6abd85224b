"""Writes small datasets with LeRobot's own writer, and what its own loader returns of them; runs in LeRobot's Python.

Knows nothing of simplevla, which needs other versions: `python lerobot_writer.py OUT` makes OUT/images and OUT/videos,
beside each an .npz with what was recorded (`recorded/...`) and what LeRobot's loader returns (`loaded/...`).
"""

import inspect
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

LENGTHS = (7, 5, 12, 9, 6)
TASKS = ("lift the block", "press the button", "lift the block", "open the drawer", "press the button")
CAMERAS = {"observation.images.image": (64, 64), "observation.images.image2": (48, 80)}
FPS = 10


def features(kind: str) -> dict[str, dict[str, object]]:
    """The schema of `lerobot/libero`, with smaller pictures; `kind` is `image` or `video`."""
    names = ["height", "width", "channel"]
    pictures = {key: {"dtype": kind, "shape": (*size, 3), "names": names} for key, size in CAMERAS.items()}
    vectors = {"observation.state": 8, "action": 7}
    return pictures | {key: {"dtype": "float32", "shape": (n,), "names": None} for key, n in vectors.items()}


def recorded() -> dict[str, np.ndarray]:
    """All frames: smooth pictures that move, since a video codec is made for these, and random vectors."""
    rng, frames = np.random.default_rng(0), sum(LENGTHS)
    made = {
        "observation.state": rng.normal(size=(frames, 8)).astype(np.float32),
        "action": rng.normal(size=(frames, 7)).astype(np.float32),
    }
    for key, (height, width) in CAMERAS.items():
        t, y, x, c = np.ogrid[:frames, :height, :width, :3]
        made[key] = (127.5 + 127 * np.sin(0.3 * t + 0.05 * (1 + c) * x + 0.07 * y)).astype(np.uint8)
    return made


def write(folder: Path, kind: str) -> None:
    """Writes the dataset as people do: frame by frame, episode by episode."""
    made = recorded()
    out = LeRobotDataset.create("local/made", fps=FPS, features=features(kind), root=folder, use_videos=kind == "video")
    task_apart = "task" in inspect.signature(out.add_frame).parameters
    frame = 0
    for length, task in zip(LENGTHS, TASKS, strict=True):
        for _ in range(length):
            values = {key: array[frame] for key, array in made.items()}
            if task_apart:
                out.add_frame(values, task=task)
            else:
                out.add_frame(values | {"task": task})
            frame += 1
        out.save_episode()
    if hasattr(out, "finalize"):
        out.finalize()


def loaded(folder: Path) -> dict[str, np.ndarray]:
    """All frames as LeRobot's loader returns them, pictures as uint8 [F, height, width, 3]."""
    dataset = LeRobotDataset("local/made", root=folder)
    items = [dataset[i] for i in range(len(dataset))]
    found = {key: np.stack([item[key].numpy() for item in items]) for key in ("observation.state", "action")}
    for key in CAMERAS:
        pictures = np.stack([item[key].numpy() for item in items])
        found[key] = np.rint(255 * pictures).astype(np.uint8).transpose(0, 2, 3, 1)
    return found | {"task": np.array([item["task"] for item in items])}


def main(out: Path) -> None:
    versions = {name: version(name) for name in ("lerobot", "torch", "torchcodec", "av")}
    versions["python"] = platform.python_version()
    for kind in ("image", "video"):
        folder = out / f"{kind}s"
        write(folder, kind)
        arrays = {f"recorded/{key}": array for key, array in recorded().items()}
        arrays |= {f"loaded/{key}": array for key, array in loaded(folder).items()}
        np.savez(out / f"{kind}s.npz", versions=json.dumps(versions), **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
