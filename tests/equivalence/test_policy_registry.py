"""A new policy is its class and one line in the registry: every command then knows it."""

from pathlib import Path

import pytest
import torch

from simplevla import cli
from simplevla.adapters.load import load_policy
from simplevla.config import OptimizerConfig, SFTConfig, TrainConfig
from simplevla.policies.registry import ARCHITECTURES
from simplevla.training.imitator import Imitator
from simplevla.training.learner import Learner
from toy_policy import ToyPolicy

SUITE = ["--suite.name", "fake_suite:make", "--suite.tasks", "reach"]
WORKERS = ["--rollout.workers", "1", "--rollout.slots-per-worker", "4"]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "toy", lambda: ToyPolicy)


def test_every_command_knows_a_policy_that_has_a_line(
    known: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> str:
        code = cli.main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        assert code == 0, shown.err
        return shown.out

    assert "toy toy_small" in run("list", "policies")
    demos, sft, rl, adapted = (str(tmp_path / name) for name in ("demos", "sft", "rl", "adapted"))
    run("demos", "fake_suite:make", "--suite.tasks", "reach", "--episodes", "4", "--workers", "1", "--out", demos)
    imitate = ["--batches", "2", "--batch-size", "4", "--chunk-length", "4", "--optimizer.lr", "0.01", *SUITE]
    run("sft", "--policy", "toy_small", "--dataset", demos, "--run", sft, *imitate)
    assert isinstance(load_policy(f"{sft}/policy"), ToyPolicy)

    learn = ["--sampling.groups", "2", "--sampling.group-size", "4", "--minibatches", "1", "--updates", "1"]
    learn += ["--optimizer.lr", "0.01", "--eval-every", "0", *SUITE, *WORKERS]
    run("train", "--policy", f"{sft}/policy", "--run", rl, *learn)
    assert "overall" in run("eval", "--policy", f"{rl}/policy", *SUITE, *WORKERS)
    planned = run("plan", "tabletop_nano", "--gpus", "1", "--memory", "8", "--policy", f"{rl}/policy", *SUITE)
    assert "0.0 M parameters" in planned
    assert "fits: 1.00 of 8 GB on each GPU" in planned
    assert cli.main(["plan", "tabletop_nano", "--gpus", "1", "--memory", "8", "--policy", f"{rl}/policy"]) == 2
    assert "this policy doesn't fit the suite" in capsys.readouterr().err

    run("adapters", "new", f"{rl}/policy", adapted, "--name", "reach", "--adapter.targets", "head")
    assert "reach" in run("adapters", "list", adapted)
    adapter = load_policy(adapted)
    assert [name for name, p in adapter.named_parameters() if p.requires_grad] != []


def test_the_policy_says_what_weight_decay_spares_in_sft_and_rl(known: None) -> None:
    policy = ToyPolicy({"chunk_length": 4, "action_dim": 2}, None, None)  # type: ignore[arg-type]
    spared = {"linear.weight", "linear.bias"}
    assert policy.spared_from_decay() == spared
    settings = OptimizerConfig(lr=0.0, weight_decay=0.5)
    for adamw in (
        Imitator(policy, SFTConfig(optimizer=settings)).optimizer,
        Learner(policy, TrainConfig(optimizer=settings)).optimizer,
    ):
        decays = {group["weight_decay"] for group in adamw.adamw.param_groups}
        assert decays == {0.0}
    assert all(torch.isfinite(p).all() for p in policy.parameters())
