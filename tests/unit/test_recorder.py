"""A robot's recordings become a dataset that `sft` trains on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simplevla.adapters.load import load_policy
from simplevla.config import OptimizerConfig, SFTConfig
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.demonstrations.recorder import Recorder
from simplevla.errors import UserError
from simplevla.training.imitation import sft

SIZES = {"fixed": (16, 12), "wrist": (8, 8)}


def opened(folder: Path, **changes: Any) -> Recorder:
    arguments = {"fps": 20, "cameras": SIZES, "state": ["x_m"], "actions": ["dx_m", "grip"], **changes}
    return Recorder(folder, **arguments)


def frame(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (*size, 3), np.uint8) for name, size in SIZES.items()}
    return {"images": images, "state": [rng.normal()], "action": rng.normal(size=2).tolist()}


def test_what_is_recorded_is_what_is_read_and_trained_on(tmp_path: Path) -> None:
    said = ["push the block", "lift it", "push the block"]
    with opened(tmp_path / "demos") as recorder:
        for episode, instruction in enumerate(said):
            for step in range(episode + 2):
                recorder.add_frame(**frame(10 * episode + step))
            if episode == 1:
                recorder.drop_episode()
                for step in range(3):
                    recorder.add_frame(**frame(10 * episode + step))
            recorder.save_episode(instruction)
        assert not (tmp_path / "demos").exists()
        assert recorder.finalize() == tmp_path / "demos"
    dataset = LeRobotDataset(tmp_path / "demos")
    frames, expected = dataset.load_all(), [frame(10 * e + s) for e in range(3) for s in range(e + 2)]
    assert dataset.fps == 20
    assert [dataset.instructions[task] for task in frames.task_index] == [
        text for e, text in enumerate(said) for _ in range(e + 2)
    ]
    np.testing.assert_array_equal(frames.state, np.float32([one["state"] for one in expected]))
    np.testing.assert_array_equal(frames.actions, np.float32([one["action"] for one in expected]))
    for name in SIZES:
        np.testing.assert_array_equal(frames.images[name][:], np.stack([one["images"][name] for one in expected]))
    config = SFTConfig(dataset=str(tmp_path / "demos"), batches=1, batch_size=2, chunk_length=2)
    policy = load_policy(sft(replace(config, optimizer=OptimizerConfig(lr=1e-3)), tmp_path / "run"))
    assert policy.trained_on[0].state_names == ("x_m",)
    assert policy.trained_on[0].instructions == ("push the block", "lift it")


def test_an_interrupted_recording_goes_on(tmp_path: Path) -> None:
    for part in range(2):
        with opened(tmp_path / "demos") as recorder:
            assert recorder.next_episode == 2 * part
            for episode in range(2):
                recorder.add_frame(**frame(2 * part + episode))
                recorder.save_episode(f"do {part}")
            recorder.add_frame(**frame(99))
            if part:
                recorder.drop_episode()
                recorder.finalize()
    dataset = LeRobotDataset(tmp_path / "demos")
    frames = dataset.load_all()
    np.testing.assert_array_equal(frames.state, np.float32([frame(n)["state"] for n in range(4)]))
    assert [dataset.instructions[task] for task in frames.task_index] == ["do 0", "do 0", "do 1", "do 1"]
    with pytest.raises(UserError, match="demos exists already; name a new folder"):
        opened(tmp_path / "demos")


def test_what_is_not_as_announced_is_refused_and_the_rest_is_kept(tmp_path: Path) -> None:
    with opened(tmp_path / "demos") as recorder:
        recorder.add_frame(**frame(0))
        good = frame(1)
        for broken, message in (
            ({"images": {"fixed": good["images"]["fixed"]}}, r"frame 1 has the cameras \['fixed'\]; expected"),
            (
                {"images": {**good["images"], "wrist": good["images"]["fixed"]}},
                r"'wrist': got uint8 \[16, 12, 3\]; exp",
            ),
            ({"images": {**good["images"], "wrist": np.zeros((8, 8, 3))}}, "got float64"),
            ({"state": [np.nan]}, r"state is \[nan\]; expected 1 finite numbers: x_m"),
            ({"action": [1.0]}, "action is .*; expected 2 finite numbers: dx_m, grip"),
        ):
            with pytest.raises(UserError, match=message):
                recorder.add_frame(**{**good, **broken})
        with pytest.raises(UserError, match="0 episodes are saved, and 1 frames aren't"):
            recorder.finalize()
        with pytest.raises(UserError, match="1 frames and the instruction ' '"):
            recorder.save_episode(" ")
        recorder.save_episode("go")
        with pytest.raises(UserError, match="has 0 frames"):
            recorder.save_episode("go")
        recorder.finalize()
    assert LeRobotDataset(tmp_path / "demos").num_frames == 1
    with pytest.raises(UserError, match="got 0 cameras, 1 names of the state, 2 of actions, fps 20"):
        opened(tmp_path / "other", cameras={})
    with opened(tmp_path / "other") as recorder:
        recorder.add_frame(**frame(0))
        recorder.save_episode("go")
    with pytest.raises(UserError, match="was started with other settings"):
        opened(tmp_path / "other", state=["y_m"])
