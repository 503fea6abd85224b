import json
import multiprocessing
import os
import re
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import small_tinyvla as small
from simplevla.adapters.load import load_policy
from simplevla.config import Head, OptimizerConfig, SFTConfig, to_dict
from simplevla.demonstrations import layout
from simplevla.demonstrations.dataset import DatasetWriter, DemonstrationEpisode, LeRobotDataset
from simplevla.demonstrations.images import encode_png
from simplevla.errors import UserError
from simplevla.policies.tinyvla.policy import TinyVLA
from simplevla.storage import write_json
from simplevla.suites.base import SuiteSpec
from simplevla.training import imitation
from simplevla.training.chunks import Augmentation, ChunkBatch, ChunkBatches
from simplevla.training.imitation import check_actions_in_range, sft, start_policy, validation_metrics
from simplevla.training.imitator import Imitator

INSTRUCTIONS = ("go to the red dot", "go away from the red dot")


def write_dataset(
    folder: Path,
    cameras: tuple[str, ...] = ("front",),
    action_scale: float = 1.0,
    instructions: tuple[str, str] = INSTRUCTIONS,
) -> Path:
    """The action is the sign of what the instruction wants, the state says on which side the dot is."""
    spec = SuiteSpec(
        cameras=dict.fromkeys(cameras, (16, 16)),
        state_names=("x",),
        action_names=("dx", "dy"),
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        control_hz=10.0,
    )
    rng = np.random.default_rng(0)
    with DatasetWriter(folder, spec, instructions, {"suite": "dots"}) as out:
        for number in range(20):
            side, task = 1 - 2 * (number % 2), number // 2 % 2
            image = np.zeros((16, 16, 3), np.uint8)
            image[5:9, 11 if side > 0 else 2, 0] = 255
            png = encode_png(image)
            out.add(
                DemonstrationEpisode(
                    task=f"task{task}",
                    instruction=instructions[task],
                    initial_state=number,
                    attempts=1,
                    images={camera: [png] * 4 for camera in cameras},
                    state=np.full((4, 1), side, np.float32) + rng.normal(0, 0.1, (4, 1)).astype(np.float32),
                    actions=np.tile(np.float32([side * (1 - 2 * task), 0.5 * side]) * action_scale, (4, 1)),
                )
            )
        out.finish()
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("demos") / "dots")


@pytest.fixture
def config(dataset: Path) -> SFTConfig:
    optimizer = OptimizerConfig(lr=2e-3, weight_decay=0.01, warmup_steps=5)
    return SFTConfig(
        dataset=str(dataset),
        batches=12,
        batch_size=8,
        chunk_length=2,
        optimizer=optimizer,
        shift_pixels=1,
        validation_fraction=0.2,
        validate_every=4,
    )


def _rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_imitation_learns_what_instruction_and_state_say(config: SFTConfig, tmp_path: Path) -> None:
    folder = sft(replace(config, batches=60, validate_every=60), tmp_path / "run")
    rows = {key: value for row in _rows(tmp_path / "run") for key, value in row.items()}
    # Nothing learned is ln 256 = 5.55 nats.
    assert rows["validation_loss"] < 2.8
    policy = load_policy(folder)
    assert (policy.chunk_length, policy.cameras, policy.action_dim) == (2, ("front",), 2)
    assert {"loss", "grad_norm", "lr", "batches_per_s"} <= set(rows)
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    said = (tmp_path / "run" / "run.log").read_text()
    assert re.search(r"sft: 60 of 60, .*, took 0:\d\d, loss \d\.\d+, validation loss \d\.\d+\n", said)
    assert "0 of 80 frames are idle" in said
    assert json.loads((tmp_path / "run" / "config.json").read_text())["batches"] == 60
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["suite_protocol"]["suite"] == "dots"


@pytest.mark.parametrize("head", ["tokens", "diffusion", "flow"])
def test_a_resumed_run_ends_bit_for_bit_like_an_uninterrupted_one(
    head: Head, config: SFTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, head=head)
    sft(config, tmp_path / "whole")
    real = Imitator.update

    def killed_in_batch_ten(self: Imitator, batch: ChunkBatch, number: int) -> dict[str, float]:
        if number == 9:
            raise KeyboardInterrupt
        return real(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(Imitator, "update", killed_in_batch_ten)
        with pytest.raises(KeyboardInterrupt):
            sft(config, tmp_path / "cut")
    assert not (tmp_path / "cut" / "policy").exists()
    sft(config, tmp_path / "cut", resume=True)
    for name in ("model.safetensors", "tokenizer.json", "statistics.json", "config.json"):
        assert (tmp_path / "cut/policy" / name).read_bytes() == (tmp_path / "whole/policy" / name).read_bytes(), name

    def timeless(run: Path) -> list[dict[str, float]]:
        return [{k: v for k, v in row.items() if k != "batches_per_s"} for row in _rows(run)]

    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")
    assert [row["batch"] for row in timeless(tmp_path / "cut")] == [4, 4, 8, 8, 12, 12]


def test_resume_before_the_first_checkpoint_starts_afresh(config: SFTConfig, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    config = replace(config, batches=1)
    write_json(tmp_path / "run" / "config.json", to_dict(config))
    sft(config, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "policy" / "model.safetensors").is_file()


def test_every_batch_has_chunks_and_noise_of_its_own(
    config: SFTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks, seeds = set(), set()
    make, loss = ChunkBatches.make, TinyVLA.imitation_loss

    def noted_make(self: ChunkBatches, starts: np.ndarray, augmentation: Augmentation | None = None) -> ChunkBatch:
        if augmentation is not None:
            chunks.add(starts.tobytes() + augmentation.colours.tobytes())
        return make(self, starts, augmentation)

    def noted_loss(self: TinyVLA, *arguments: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            seeds.add(torch.initial_seed())
        return loss(self, *arguments)

    monkeypatch.setattr(ChunkBatches, "make", noted_make)
    monkeypatch.setattr(TinyVLA, "imitation_loss", noted_loss)
    sft(replace(config, batches=3, batch_size=2), tmp_path / "run")
    assert (len(chunks), len(seeds)) == (3, 3)


def test_a_run_is_not_overwritten_nor_resumed_with_other_settings(config: SFTConfig, tmp_path: Path) -> None:
    sft(replace(config, batches=1), tmp_path / "run")
    with pytest.raises(ValueError, match=r"run exists already; .*simplevla sft --resume"):
        sft(replace(config, batches=1), tmp_path / "run")
    with pytest.raises(ValueError, match=r"batches is 2, the run has 1 \(the cosine schedule"):
        sft(replace(config, batches=2), tmp_path / "run", resume=True)


def test_a_saved_policy_is_gone_on_with_and_keeps_its_statistics(
    config: SFTConfig, tmp_path: Path, dataset: Path
) -> None:
    first = sft(replace(config, batches=2), tmp_path / "first")
    other = write_dataset(tmp_path / "other", action_scale=0.5)
    lr_zero = replace(config.optimizer, lr=0.0)
    second = sft(
        replace(config, dataset=str(other), policy=str(first), batches=1, chunk_length=7, optimizer=lr_zero),
        tmp_path / "second",
    )
    for name in ("statistics.json", "model.safetensors", "config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def _breaks(kind: str, config: SFTConfig, tmp_path: Path) -> SFTConfig:
    if kind == "scale":
        return replace(config, dataset=str(write_dataset(tmp_path / "scaled", action_scale=3.0)))
    if kind == "camera":
        return replace(config, dataset=str(write_dataset(tmp_path / "renamed", cameras=("top",))))
    small.make().save(tmp_path / "small")
    return replace(config, policy=str(tmp_path / "small"))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("scale", r"action dimension 0 of the dataset runs from -3 to 3; the policy's frozen statistics allow -1 to 1"),
        ("camera", r"looks through front, the dataset .*renamed has top"),
        ("dimensions", r"looks through wrist, the dataset .*takes 3 state dimensions, the dataset .* has 1"),
    ],
)
def test_a_dataset_that_does_not_fit_the_policy_is_refused(
    kind: str, message: str, config: SFTConfig, tmp_path: Path
) -> None:
    policy = sft(replace(config, batches=1), tmp_path / "first")
    broken = _breaks(kind, replace(config, policy=str(policy)), tmp_path)
    with pytest.raises(ValueError, match=message):
        sft(broken, tmp_path / "second")
    assert not (tmp_path / "second").exists()


def _column(*values: float, rest: float = 0.0) -> np.ndarray:
    """Actions [100, 1] that are `rest` but for `values`."""
    return np.array([*values, *[rest] * (100 - len(values))], np.float32)[:, None]


def test_a_range_that_leaves_the_frozen_one_by_a_tenth_is_tolerated() -> None:
    low, high = np.array([-1.0]), np.array([1.0])
    check_actions_in_range(low, high, _column(*[1.19] * 50, *[-1.19] * 50))
    for far in (-1.21, 1.21):
        # One frame of a hundred is cut off and does no harm; two are refused.
        check_actions_in_range(low, high, _column(far))
        with pytest.raises(ValueError, match=r"dimension 0 .* and 2\.0% of the frames lie beyond"):
            check_actions_in_range(low, high, _column(far, far))


def test_a_constant_dimension_has_slack() -> None:
    low, high = np.array([-1.0, 0.0, 1.0]), np.array([1.0, 0.0, 1.0])
    actions = np.tile(np.float32([0.5, 0.0015, 0.993]), (100, 1))
    check_actions_in_range(low, high, actions)
    for dimension, value in ((1, 0.01), (2, 0.9)):
        moved = actions.copy()
        moved[:, dimension] = value
        with pytest.raises(ValueError, match=f"action dimension {dimension} of the dataset"):
            check_actions_in_range(low, high, moved)


def test_a_narrow_range_far_from_zero_is_no_constant() -> None:
    low, high = np.array([90.0]), np.array([91.0])
    check_actions_in_range(low, high, _column(rest=91.05))
    with pytest.raises(ValueError, match="action dimension 0"):
        check_actions_in_range(low, high, _column(rest=91.5))


def test_the_range_is_compared_with_the_frames_and_not_with_stats_json(config: SFTConfig, tmp_path: Path) -> None:
    policy = sft(replace(config, batches=1), tmp_path / "first")
    stats = write_dataset(tmp_path / "scaled", action_scale=3.0) / "meta/stats.json"
    content = json.loads(stats.read_text())
    content["action"] = {name: [v / 3 for v in values] for name, values in content["action"].items()}
    stats.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="action dimension 0 of the dataset runs from -3 to 3"):
        sft(replace(config, policy=str(policy), dataset=str(tmp_path / "scaled")), tmp_path / "second")


@pytest.mark.parametrize("head", ["tokens", "diffusion", "flow"])
def test_an_action_beyond_the_range_is_learned_as_the_outermost(head: Head) -> None:
    policy, losses = small.make(head=head), []
    for value in (1.0, 100.0):
        batch = small.observations(["lift the block"] * 2)
        actions = policy.in_environment_units(torch.full((2, policy.chunk_length, policy.action_dim), value))
        torch.manual_seed(0)
        loss = policy.imitation_loss(batch, actions, torch.ones(2, policy.chunk_length, dtype=torch.bool))
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_quantile_bounds_make_the_outermost_bins(config: SFTConfig, tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "spoiled")
    data = folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(data)
    actions = np.linspace(-1, 1, len(table) * 2, dtype=np.float32).reshape(-1, 2)
    wanted = np.quantile(actions[:, 1].astype(np.float64), (0.01, 0.99))
    actions[40, 1] = 100.0
    index = table.schema.names.index("action")
    column = layout.vector_array(actions)
    pq.write_table(table.set_column(index, table.schema.field(index), column), data)
    config = replace(config, dataset=str(folder), batches=1)
    with pytest.raises(ValueError, match=r"action dimension 1 is 100 at frame 40 of episode 10; .*--bounds quantile"):
        sft(config, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    policy = load_policy(sft(replace(config, bounds="quantile"), tmp_path / "run"))
    assert policy.statistics.action["min"][1] == pytest.approx(wanted[0], abs=0.02)
    assert policy.statistics.action["max"][1] == pytest.approx(wanted[1], abs=0.03)
    assert isinstance(policy, TinyVLA)
    ends = policy.in_environment_units(torch.tensor([-1.0, 1.0])[:, None])
    assert ends[:, 1].tolist() == pytest.approx([policy.statistics.action[m][1] for m in ("min", "max")])


def test_extreme_actions_of_a_policy_without_bounds(config: SFTConfig, tmp_path: Path) -> None:
    dataset = LeRobotDataset(write_dataset(tmp_path / "demos"))
    dataset.rows.actions[40, 1] = 1000.0
    with pytest.raises(ValueError, match=r"remove the episode$"):
        start_policy(replace(config, policy="smolvla_nano"), dataset)


def test_quantile_bounds_are_refused_where_a_policy_has_none(config: SFTConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--bounds is 'quantile', and smolvla_nano has no bounds"):
        sft(replace(config, policy="smolvla_nano", bounds="quantile"), tmp_path / "run")


def test_validation_averages_over_valid_actions(config: SFTConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of different numbers of valid actions must not be averaged one by one."""
    losses = iter([torch.tensor(1.0), torch.tensor(4.0)])
    policy = small.make()
    monkeypatch.setattr(policy, "imitation_loss", lambda *_: next(losses))

    def batch(valid: int) -> ChunkBatch:
        mask = torch.tensor([[True] * valid + [False] * (3 - valid)])
        return ChunkBatch(observations=small.observations(["press it"]), actions=torch.zeros(1, 3, 1), mask=mask)

    metrics = validation_metrics(policy, config, [batch(3), batch(1)])
    assert metrics == pytest.approx({"validation_loss": (3 * 1 + 1 * 4) / 4})


def test_decoding_while_training_gives_equal_bits_also_when_resumed(
    config: SFTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """80 frames of 16 x 16 pixels are 61,440 bytes, a batch of 8 is 6,144."""
    sft(config, tmp_path / "memory")
    streamed = replace(config, memory_gb=7e-6)

    priorities: list[int] = []

    def killed(*_: object) -> None:
        priorities.extend(child.nice() - psutil.Process().nice() for child in psutil.Process().children())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(imitation, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            sft(streamed, tmp_path / "run")
    # Those that decode leave the cores to what trains.
    assert max(priorities) > 0
    # Half of it in memory makes no difference either.
    sft(replace(streamed, memory_gb=8e-6), tmp_path / "run", resume=True)
    expected = (tmp_path / "memory/policy/model.safetensors").read_bytes()
    assert (tmp_path / "run/policy/model.safetensors").read_bytes() == expected
    losses = [
        [row[key] for row in _rows(tmp_path / name) for key in ("loss", "validation_loss") if key in row]
        for name in ("memory", "run")
    ]
    assert losses[0] == losses[1]
    assert not (tmp_path / "run/encoded").exists()


def test_a_budget_below_a_batch_and_a_damaged_picture_are_one_line(config: SFTConfig, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"a batch takes .* GB, and memory-gb is .*; raise memory-gb or lower batch-size"
    ):
        sft(replace(config, memory_gb=6e-6), tmp_path / "run")
    file = write_dataset(tmp_path / "damaged") / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    key = layout.IMAGE_PREFIX + "front"
    images = [{**image, "bytes": image["bytes"][:60]} for image in table[key].to_pylist()]
    number = table.column_names.index(key)
    pq.write_table(table.set_column(number, key, pa.array(images, table.schema.field(key).type)), file)
    with pytest.raises(UserError, match=r"frame .*: the image can't be decoded") as raised:
        sft(replace(config, dataset=str(tmp_path / "damaged"), memory_gb=7e-6), tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_decoding_process_that_dies_is_one_line(
    config: SFTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill_children(*_: object) -> dict[str, float]:
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGKILL)
        return {"loss": 0.0, "grad_norm": 0.0, "lr": 0.0}

    monkeypatch.setattr(Imitator, "update", kill_children)
    with pytest.raises(UserError, match=r"a process that decodes pictures died .* go on with --resume") as raised:
        sft(replace(config, memory_gb=7e-6), tmp_path / "run")
    # While the error is kept, the end of another process doesn't let torch tell of the dead one again.
    subprocess.run(["true"], check=True)
    time.sleep(0.1)
    assert isinstance(raised.value.__cause__, RuntimeError)
