"""Whole SFT runs with what a large policy needs: where they compute, what they leave, and how they go on."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_imitation import write_dataset

import simplevla.adapters.load
from simplevla import cli
from simplevla.adapters.bank import bank_of
from simplevla.adapters.load import load_policy
from simplevla.config import DemosConfig, LearnersConfig, OptimizerConfig, SFTConfig, SuiteConfig
from simplevla.demonstrations.generate import generate
from simplevla.errors import UserError
from simplevla.policies.base import ObservationBatch, Policy
from simplevla.policies.tinyvla.policy import TinyVLA
from simplevla.training import imitation
from simplevla.training.chunks import ChunkBatch
from simplevla.training.imitation import sft
from simplevla.training.imitator import Imitator


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("demos") / "dots")


@pytest.fixture(scope="module")
def config(dataset: Path) -> SFTConfig:
    return SFTConfig(
        dataset=str(dataset),
        batches=3,
        batch_size=5,
        chunk_length=2,
        optimizer=OptimizerConfig(lr=2e-3),
        validation_fraction=0.1,
        validate_every=2,
    )


@pytest.fixture(scope="module")
def start(config: SFTConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a policy to go on from."""
    return sft(replace(config, batches=1), tmp_path_factory.mktemp("start") / "run")


def cut_and_resumed(config: SFTConfig, run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    real = Imitator.update

    def killed_in_the_third(self: Imitator, batch: ChunkBatch, number: int) -> dict[str, float]:
        if number == 2:
            raise KeyboardInterrupt
        return real(self, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(Imitator, "update", killed_in_the_third)
        with pytest.raises(KeyboardInterrupt):
            sft(config, run)
    return sft(config, run, resume=True)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows for key in ("loss", "validation_loss") if key in row]


def test_a_run_in_parts_and_in_bfloat16_is_resumed_bit_for_bit(
    config: SFTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, head="diffusion", precision="bfloat16", microbatch_size=3, gradient_checkpointing=True)
    whole = sft(config, tmp_path / "whole")
    cut = cut_and_resumed(config, tmp_path / "cut", monkeypatch)
    assert files(cut) == files(whole)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert {value.dtype for value in load_policy(whole).state_dict().values()} == {torch.float32}


def test_a_lora_learns_alone_and_is_resumed_bit_for_bit(
    config: SFTConfig, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, policy=str(start), adapter_rank=2, precision="bfloat16")
    whole = sft(config, tmp_path / "whole")
    cut = cut_and_resumed(config, tmp_path / "cut", monkeypatch)
    assert files(cut) == files(whole)
    before, after = load_policy(start).state_dict(), files(whole)
    policy = load_policy(whole)
    bank = bank_of(policy)
    with bank.detached():
        assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert (bank.names, bank.active, bank.training) == (["sft"], "sft", True)
    assert bank.entry("sft").instructions == ("go to the red dot", "go away from the red dot")
    assert json.loads(after["adapters/sft/adapter.json"])["config"]["rank"] == 2
    outer = {name: p for name, p in bank.parameters("sft").items() if ".lora_B" in name}
    assert len(outer) > 5
    assert all(p.abs().max() > 0 for p in outer.values())
    assert set(bank.trainable_names()) == {name for name, p in policy.named_parameters() if ".lora_" in name}
    with pytest.raises(UserError, match=r"adapter_rank is 2, and .*policy has adapters already; leave it at 0"):
        sft(replace(config, policy=str(whole)), tmp_path / "again")
    # Episodes 0, 1, 4, 5 all go to the dot: nobody met the other instruction.
    met = sft(replace(config, episodes="0:2,4:6", batches=1), tmp_path / "met")
    assert bank_of(load_policy(met)).entry("sft").instructions == ("go to the red dot",)
    # What is ready is trained on.
    further = load_policy(sft(replace(config, policy=str(whole), adapter_rank=0, batches=1), tmp_path / "further"))
    went_on = bank_of(further).parameters("sft")
    assert not any(torch.equal(went_on[name], p) for name, p in outer.items())


def test_what_can_not_be_is_said_before_anything_is_learned(
    config: SFTConfig, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = [
        (replace(config, adapter_rank=2), r"adapter_rank is 2 and the policy 'nano' a new one, whose base would stay"),
        (replace(config, policy=str(start), adapter_rank=10**6), r"adapter 'sft' of rank 1000000 would have"),
        (replace(config, device="cuda"), r"device is 'cuda', which PyTorch .* can't use here .*; give --device cpu"),
    ]
    for broken, message in refused:
        with pytest.raises(UserError, match=message) as raised:
            sft(broken, tmp_path / "run")
        assert "\n" not in str(raised.value)
        assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"device is 'cuda', and the 2 ray.learners have no GPU; give --ray.learner-gp"):
        replace(config, device="cuda", ray=LearnersConfig(learners=2))


def test_everything_computes_where_it_was_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no second device here: moving a policy is noted instead, what computes must have been moved, and what it
    looks at must be sent where the policy is."""
    suite = SuiteConfig(name="fake_suite:make", tasks=("reach",))
    generate(DemosConfig(suite=suite, episodes=4, workers=1), tmp_path / "demos")
    settings = SFTConfig(dataset=str(tmp_path / "demos"), suite=suite, batches=2, batch_size=4, validate_every=1)
    settings = replace(settings, eval_episodes_per_task=1, optimizer=OptimizerConfig(lr=1e-3), validation_fraction=0.25)
    moved: dict[int, tuple[Policy, str]] = {}
    computed: list[str] = []
    sent: list[torch.device] = []
    send = ObservationBatch.to

    def note(policy: Policy, device: str) -> None:
        moved[id(policy)] = policy, device

    def noted(batch: ObservationBatch, device: torch.device) -> ObservationBatch:
        sent.append(device)
        return send(batch, device)

    def watch(name: str) -> Callable[..., Any]:
        original = getattr(TinyVLA, name)

        def watched(policy: TinyVLA, *arguments: Any, **options: Any) -> Any:
            where = moved.get(id(policy), (policy, "nowhere"))[1]
            assert where == "cuda", f"{name} on {where}"
            computed.append(name)
            before = len(sent)
            result = original(policy, *arguments, **options)
            assert sent[before:] == [policy.device], name
            return result

        return watched

    monkeypatch.setattr(simplevla.adapters.load, "move_to_device", note)
    monkeypatch.setattr(imitation, "move_to_device", note)
    monkeypatch.setattr(ObservationBatch, "to", noted)
    for name in ("act", "imitation_loss"):
        monkeypatch.setattr(TinyVLA, name, watch(name))
    sft(replace(settings, device="cuda", schedule="constant"), tmp_path / "two")
    assert set(computed) == {"act", "imitation_loss"}
    computed.clear()
    sft(replace(settings, device="cuda", schedule="constant", batches=3), tmp_path / "two", resume=True)
    assert set(computed) == {"act", "imitation_loss"}


@pytest.mark.parametrize("learners", [0, 2])
def test_the_command_trains_on_a_cluster_where_learners_are_asked_for(
    learners: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simplevla.distributed.learner import RayImitator

    got: list[Any] = []

    def noted(config: SFTConfig, run: Path, resume: bool, make_trainer: Any) -> Path:
        got.extend([config, make_trainer])
        return run

    monkeypatch.setattr(imitation, "sft", noted)
    flags = ["--precision", "bfloat16", "--microbatch-size", "4", "--gradient-checkpointing", "--adapter-rank", "8"]
    flags += ["--ray.learners", str(learners), "--ray.divide", "copies", "--device", "cpu", "--run", str(tmp_path)]
    assert cli.main(["sft", "tabletop_nano", *flags]) == 0
    config, make_trainer = got
    assert make_trainer is (RayImitator if learners else Imitator)
    assert (config.precision, config.microbatch_size, config.gradient_checkpointing) == ("bfloat16", 4, True)
    assert (config.adapter_rank, config.ray) == (8, LearnersConfig(learners=learners, divide="copies"))
