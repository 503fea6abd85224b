"""Does LeRobot's own loader open a dataset that we wrote, and yield the same frames?

LeRobot pins other versions of torch and more, so it gets an environment of its own (CPU torch, no torchvision, which
LeRobot's image path needs only for `ToTensor`; a stand-in for that is put in its place here):

    python3 -m venv /tmp/lerobot_venv
    /tmp/lerobot_venv/bin/pip install torch==2.13.0
    /tmp/lerobot_venv/bin/pip install --no-deps lerobot
    echo torch==2.13.0 > /tmp/constraints.txt
    /tmp/lerobot_venv/bin/pip install -c /tmp/constraints.txt "datasets>=4,<5" pandas jsonlines "av>=15,<16" pillow \
        "huggingface-hub>=0.34.2,<0.36" packaging einops deepdiff termcolor draccus==0.10.0 gymnasium imageio \
        accelerate rich
    MUJOCO_GL=egl python -c "from simplevla.config import DemosConfig; from simplevla.demonstrations.generate import \
        generate; generate(DemosConfig(episodes=60), 'data/check')"
    PYTHONPATH=src:. /tmp/lerobot_venv/bin/python -m benchmarks.experiments.check_lerobot_loader data/check

Prints LeRobot's version and the number of equal frames; any difference is an AssertionError.
"""

import importlib.machinery
import sys
import types
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch


class _ToTensor:
    """What torchvision's `ToTensor` does with an RGB image: uint8 [h, w, 3] -> float32 [3, h, w] in [0, 1]."""

    def __call__(self, image: object) -> torch.Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def stand_in_for_torchvision() -> None:
    """Put a module named torchvision in place, with just what LeRobot's dataset modules touch."""
    names = (
        "torchvision",
        "torchvision.transforms",
        "torchvision.transforms.v2",
        "torchvision.transforms.v2.functional",
    )
    for name in names:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    sys.modules["torchvision.transforms"].ToTensor = _ToTensor  # type: ignore[attr-defined]
    v2 = sys.modules["torchvision.transforms.v2"]
    v2.Transform = object  # type: ignore[attr-defined]
    v2.functional = sys.modules["torchvision.transforms.v2.functional"]  # type: ignore[attr-defined]


def main(folder: Path) -> None:
    stand_in_for_torchvision()
    from lerobot.datasets.lerobot_dataset import LeRobotDataset as Theirs

    from simplevla.demonstrations.dataset import LeRobotDataset as Ours

    ours = Ours(folder)
    frames = ours.load_all()
    theirs = Theirs("local/check", root=folder, video_backend="pyav")
    assert len(theirs) == ours.num_frames
    assert theirs.num_episodes == ours.num_episodes
    assert theirs.fps == ours.fps
    for index in range(ours.num_frames):
        item = theirs[index]
        assert item["task"] == ours.instructions[frames.task_index[index]]
        assert int(item["episode_index"]) == frames.episode_index[index]
        assert np.array_equal(np.atleast_1d(item["observation.state"].numpy()), frames.state[index])
        assert np.array_equal(np.atleast_1d(item["action"].numpy()), frames.actions[index])
        for camera, images in frames.images.items():
            image = item[f"observation.images.{camera}"]
            assert image.shape == (3, *ours.cameras[camera])
            assert np.array_equal((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy(), images[index])
    for name, key in (("state", "observation.state"), ("action", "action")):
        for measure, values in getattr(ours.statistics, name).items():
            assert np.allclose(theirs.meta.stats[key][measure], values)
    some = [1, ours.num_episodes - 1]
    picked = Theirs("local/check", root=folder, episodes=some, delta_timestamps={"action": [0, 1 / ours.fps]})
    expected = [i for e in some for i in range(*ours.episode_ranges[e])]
    assert len(picked) == len(expected)
    start, stop = ours.episode_ranges[1]
    pair = frames.actions[[start, min(start + 1, stop - 1)]]
    assert np.array_equal(picked[0]["action"].numpy().reshape(2, -1), pair)
    assert picked[stop - start - 1]["action_is_pad"].tolist() == [False, True]
    print(
        f"lerobot {version('lerobot')}, datasets {version('datasets')}, torch {torch.__version__}: "
        f"{ours.num_frames} frames of {ours.num_episodes} episodes are equal, whole and by episode"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
