"""Earlier tasks' demonstrations in the batches of a later task's imitation."""

import json
import pickle
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_imitation import write_dataset

from made_dataset import INSTRUCTIONS, LENGTHS, to_videos, write
from simplevla.adapters.load import load_policy
from simplevla.config import OptimizerConfig, SFTConfig
from simplevla.demonstrations import streaming
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.demonstrations.joined import joined
from simplevla.policies.trained_on import layout_differences
from simplevla.training.batches import Samples, chunk_batches
from simplevla.training.chunks import ChunkBatches
from simplevla.training.imitation import sft, sft_stage, validation_metrics

ANY_ORDER = np.array([12, 3, 0, 15, 7, 8, 8, 1, 11])


def test_joined_datasets_are_one_after_another(tmp_path: Path) -> None:
    write(tmp_path / "images")
    write(tmp_path / "videos")
    to_videos(tmp_path / "videos", [[2, 0], [1]])
    sets = [LeRobotDataset(tmp_path / name).seen_by(["wrist"]) for name in ("images", "videos")]
    both = LeRobotDataset(tmp_path / "videos").seen_by(["front"])
    whole = [dataset.load_all() for dataset in (both, both)]
    streamed = joined([whole[0], both.streamed(tmp_path / "spill")], [2, 2])
    for frames in (streamed, pickle.loads(pickle.dumps(streamed))):
        np.testing.assert_array_equal(
            frames.images["front"][ANY_ORDER], np.concatenate([part.images["front"] for part in whole])[ANY_ORDER]
        )
    parts = [dataset.load_all() for dataset in sets]
    frames = joined(parts, [len(dataset.instructions) for dataset in sets])
    np.testing.assert_array_equal(frames.actions, np.concatenate([part.actions for part in parts]))
    np.testing.assert_array_equal(frames.state, np.concatenate([part.state for part in parts]))
    assert np.unique(frames.episode_index, return_counts=True)[1].tolist() == [*LENGTHS, *LENGTHS]
    said = [text for dataset in sets for text in dataset.instructions]
    assert [said[task] for task in frames.task_index] == 2 * [
        text for text, length in zip(INSTRUCTIONS, LENGTHS, strict=True) for _ in range(length)
    ]
    assert set(frames.task_index[sum(LENGTHS) :]) == {2, 3}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two tasks; and two others, for which the same pictures ask for the opposite."""
    folder = tmp_path_factory.mktemp("demos")
    later = write_dataset(folder / "later", action_scale=-1.0, instructions=("fly to the dot", "fly off"))
    return write_dataset(folder / "earlier"), later


def config(folder: Path, **changes: object) -> SFTConfig:
    optimizer = OptimizerConfig(lr=2e-3, weight_decay=0.01, warmup_steps=5)
    made = SFTConfig(
        dataset=str(folder), batches=30, batch_size=16, validate_every=30, chunk_length=2, optimizer=optimizer
    )
    return replace(made, **changes)


def test_a_share_of_each_batch_is_replayed_and_nothing_else_changes(datasets: tuple[Path, Path]) -> None:
    earlier, later = map(LeRobotDataset, datasets)
    alone = list(Samples(config(later.folder), later, []).requests(0))
    settings = config(later.folder, replay=(str(earlier.folder),), replay_share=0.25)
    samples = Samples(settings, later, [earlier])
    asked = list(samples.requests(0))
    drawn = np.stack([request.starts for request in asked[:30]])
    assert drawn.shape == (30, 16)
    assert (drawn[:, :12] < later.num_frames).all()
    assert (drawn[:, 12:] >= later.num_frames).all()
    assert set(drawn[:, 12:].ravel()) <= set(range(later.num_frames, later.num_frames + earlier.num_frames))
    assert len(set(drawn[:, 12:].ravel())) > 0.7 * earlier.num_frames
    # Batch 7 is batch 7 wherever a run goes on, and the validation is of the later tasks alone.
    np.testing.assert_array_equal(next(samples.requests(7)).starts, drawn[7])
    for kept, before in zip(asked[30:], alone[30:], strict=True):
        np.testing.assert_array_equal(kept.starts, before.starts)
    earlier.rows.__dict__["idle"] = idle = np.arange(earlier.num_frames) % 3 == 1
    dropping = Samples(replace(settings, idle_frames="drop"), later, [earlier])
    np.testing.assert_array_equal(dropping.replay, later.num_frames + np.flatnonzero(~idle))


def test_what_is_replayed_is_not_forgotten(datasets: tuple[Path, Path], tmp_path: Path) -> None:
    earlier, later = datasets
    base = sft(config(earlier), tmp_path / "base")
    after = {}
    for name, replay in (("alone", ()), ("replay", (str(earlier),))):
        settings = config(later, policy=str(base), replay=replay)
        policy = load_policy(sft(settings, tmp_path / name))
        dataset = LeRobotDataset(earlier)
        frames = dataset.load_all()
        batch = ChunkBatches(frames, dataset.instructions, policy.cameras, 2).make(np.arange(dataset.num_frames))
        after[name] = validation_metrics(policy, settings, [batch])["validation_loss"]
        assert policy.trained_on[0] == sft_stage(dataset)
        assert policy.trained_on[-1] == sft_stage(LeRobotDataset(later))
        assert len(policy.trained_on) == 2
    assert after["replay"] < 0.5 * after["alone"]


def test_numbers_that_mean_something_else_are_warned_of(datasets: tuple[Path, Path], tmp_path: Path) -> None:
    earlier, later = datasets
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".* and this dataset differ")
        base = sft(config(earlier, batches=1, validate_every=1), tmp_path / "base")
        sft(config(later, policy=str(base), batches=1, validate_every=1), tmp_path / "same")
    other = tmp_path / "faster"
    shutil.copytree(earlier, other)
    info = json.loads((other / "meta/info.json").read_text())
    rate, (first, *rest) = info["fps"], info["features"]["action"]["names"]
    info["features"]["action"]["names"] = [*rest, first]
    (other / "meta/info.json").write_text(json.dumps(info))
    short = {"batches": 1, "validate_every": 1}
    for policy, dataset, replay, said in (
        (base, other, (), rf"the policy in .*base.* differ: the action's dimensions were {first}, .*, now .*, {first}"),
        (base, later, (str(other),), r"the replayed dataset .*faster and this dataset differ: the action's"),
    ):
        run = tmp_path / f"run{len(replay)}"
        with pytest.warns(UserWarning, match=said):
            sft(config(dataset, policy=str(policy), replay=replay, **short), run)
    stage = sft_stage(LeRobotDataset(earlier))
    (found,) = layout_differences([stage], stage.state_names, stage.action_names, 2 * rate)
    assert found == f"it was trained at {rate:g} actions per second, this is {2 * rate:g}"


def test_what_can_not_be_replayed_is_refused(datasets: tuple[Path, Path], tmp_path: Path) -> None:
    earlier, later = datasets
    for share in (0.0, 0.02, 0.99):
        with pytest.raises(
            ValueError, match=r"replay_share .* of batches of 16 is (0|16) samples; expected at least one"
        ):
            config(later, replay=(str(earlier),), replay_share=share)
    write(tmp_path / "other")
    with pytest.raises(ValueError, match=r"state of 1 .*other|other.*3"):
        sft(config(later, replay=(str(tmp_path / "other"),)), tmp_path / "run")
    other = write_dataset(tmp_path / "far", action_scale=3.0)
    with pytest.raises(ValueError, match="frozen statistics allow"):
        sft(config(later, replay=(str(other),)), tmp_path / "run2")


def test_space_is_asked_for_all_that_is_copied(
    datasets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier, later = (LeRobotDataset(folder).seen_by(["front"]) for folder in datasets)
    one = max(streaming.encoded_bytes(d.streamed(tmp_path / "spill").images) for d in (earlier, later))
    monkeypatch.setattr(streaming.shutil, "disk_usage", lambda _: type("Usage", (), {"free": one}))
    policy = type("Seeing", (), {"cameras": ("front",), "chunk_length": 2})()
    settings = config(later.folder, memory_gb=1e-6)
    with (
        pytest.raises(ValueError, match=r"needs 0\.0 GB for encoded pictures"),
        chunk_batches(settings, tmp_path, [later, earlier], policy, []),
    ):
        pass
