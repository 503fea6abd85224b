"""Settings that were given and would have no effect are refused or said."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import made_dataset
import small_tinyvla as small
from fake_policy import FakePolicy
from simplevla import cli
from simplevla.adapters.bank import AdapterBank
from simplevla.adapters.config import AdapterConfig, ContinualConfig
from simplevla.config import (
    DemosConfig,
    DenoisingConfig,
    EvalConfig,
    LearnersConfig,
    RayConfig,
    SamplingConfig,
    SFTConfig,
    SuiteConfig,
    TrainConfig,
)
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.effect import check_eval, check_sft, check_train
from simplevla.errors import UserError
from simplevla.evaluation.evaluate import evaluation_pairs
from simplevla.policies.base import Sampling
from simplevla.recipes import CONTINUAL, SFT, TRAIN
from simplevla.recipes.demo import demo
from simplevla.storage import write_json
from simplevla.suites.registry import make_suite
from simplevla.training import imitation
from simplevla.training.continual import _check_effect
from simplevla.training.run_folder import write_config

TOKENS = FakePolicy.unused_settings
DIFFUSION = small.make(head="diffusion").unused_settings


def continual(**changes: Any) -> ContinualConfig:
    train = TrainConfig(suite=SuiteConfig(name="fake_suite:make"), seed=3)
    return replace(ContinualConfig(train=train, tasks=("reach",), warmup_demos=2), **changes)


REFUSED: dict[str, tuple[Callable[[Any], None], Any]] = {
    "ray.cpus is 2.0 and has no effect: ray.actors is 0": (train := lambda config: check_train(config, {}), TrainConfig(ray=RayConfig(cpus=2))),
    "ray.gpus is 0.5 and has no effect: ray.actors is 0": (train, TrainConfig(ray=RayConfig(gpus=0.5, simulators=2))),
    "ray.answer_timeout_s is 5.0 and": (train, TrainConfig(ray=RayConfig(answer_timeout_s=5))),
    "ray.simulator_cpus is 2.0 and has no effect: ray.simulators is 0": (train, TrainConfig(ray=RayConfig(actors=2, simulator_cpus=2))),
    "ray.divide is 'copies' and has no effect: ray.learners is 0": (train, TrainConfig(ray=RayConfig(actors=2, divide="copies"))),
    "ray.address is 'auto' and has no effect: ray.learners and ray.actors and ray.simulators are 0": (train, TrainConfig(ray=RayConfig(address="auto"))),
    "sampling.max_oversampling is 9.0 and has no effect: sampling.dynamic is off": (train, TrainConfig(sampling=SamplingConfig(dynamic=False, max_oversampling=9))),
    "ray.learner_gpus is 1.0 and has no effect: ray.learners is 0": (check_sft, SFTConfig(ray=LearnersConfig(learner_gpus=1))),
    "ray.learner_cpus is 3.0 and": (check_sft, SFTConfig(ray=LearnersConfig(learner_cpus=3))),
    "replay_share is 0.25 and has no effect: there is no replay": (check_sft, SFTConfig(replay_share=0.25)),
    "temperature is 1.6 and has no effect: greedy is on": (check_eval, EvalConfig(temperature=1.6)),
    "sampling.filter_low is 0.3 and has no effect: sampling.dynamic is off": (lambda config: check_train(config, {}), TrainConfig(sampling=SamplingConfig(dynamic=False, filter_low=0.3))),
    "sampling.filter_high is 0.7 and has no effect: sampling.dynamic is off": (lambda config: check_train(config, {}), TrainConfig(sampling=SamplingConfig(dynamic=False, filter_high=0.7))),
    "warmup.suite is of 'metaworld' and has no effect: train.suite holds there too": (_check_effect, continual(warmup=SFTConfig(suite=SuiteConfig(name="metaworld")))),
    "warmup.seed is 4 and has no effect: train.seed holds there too": (_check_effect, continual(warmup=SFTConfig(seed=4))),
    "warmup.precision is 'bfloat16' and": (_check_effect, continual(warmup=SFTConfig(precision="bfloat16"))),
    "warmup.device is 'cuda' and": (_check_effect, continual(warmup=SFTConfig(device="cuda"))),
    "warmup.dataset is 'demos' and has no effect: each task has its own": (_check_effect, continual(warmup=SFTConfig(dataset="demos"))),
    "warmup.replay_share is 0.25 and": (_check_effect, continual(warmup=SFTConfig(replay_share=0.25))),
    "demos.suite is of 'metaworld' and": (_check_effect, continual(demos=DemosConfig(suite=SuiteConfig(name="metaworld")))),
    "train.ray.cpus is 2.0 and has no effect: train.ray.actors is 0": (_check_effect, continual(train=TrainConfig(ray=RayConfig(cpus=2)))),
    "warmup.ray.divide is 'copies' and": (_check_effect, continual(warmup=SFTConfig(ray=LearnersConfig(divide="copies")))),
}  # fmt: skip
WARNED: dict[str, tuple[Callable[[Any], None], Any]] = {
    "sampling.eta is 0.5 and has no effect: the policy has no diffusion head": (tokens := lambda config: check_train(config, TOKENS), TrainConfig(sampling=SamplingConfig(eta=0.5))),
    "sampling.sigma_min is 0.2 and": (tokens, TrainConfig(sampling=SamplingConfig(sigma_min=0.2))),
    "denoising.discount is 0.5 and": (tokens, TrainConfig(denoising=DenoisingConfig(discount=0.5))),
    "denoising.last_steps is 3 and": (tokens, TrainConfig(denoising=DenoisingConfig(last_steps=3))),
    "denoising.frozen_backbone is True and": (tokens, TrainConfig(denoising=DenoisingConfig(frozen_backbone=True))),
    "denoising.ratio is 'chunk' and": (tokens, small.for_rl(DenoisingConfig(ratio="chunk"))),
    "sampling.temperature is 1.6 and has no effect: the policy has a diffusion head": (lambda config: check_train(config, DIFFUSION), TrainConfig(sampling=SamplingConfig(temperature=1.6))),
    "eval_episodes_per_task is 7 and has no effect: eval_every is 0": (tokens, TrainConfig(eval_every=0, eval_episodes_per_task=7)),
    "suite is of 'metaworld' and has no effect: eval_episodes_per_task is 0": (check_sft, SFTConfig(suite=SuiteConfig(name="metaworld"))),
    "demos.episodes is 900 and has no effect: continual.warmup_demos says how many": (_check_effect, continual(demos=DemosConfig(episodes=900))),
    "demos is .* and has no effect: continual.warmup_demos is 0": (_check_effect, continual(warmup_demos=0, demos=DemosConfig(noise=1))),
    "warmup is .* and has no effect: no task has demonstrations": (_check_effect, continual(warmup_demos=0, warmup=SFTConfig(batches=5))),
    "adapter is .* and has no effect: the structure is 'full'": (_check_effect, continual(structure="full", adapter=AdapterConfig(rank=4))),
}  # fmt: skip


@pytest.mark.parametrize("said", REFUSED)
def test_what_contradicts_the_config_is_refused(said: str) -> None:
    check, config = REFUSED[said]
    with pytest.raises(UserError, match=f"^{said}.*; leave it out$"):
        check(config)


@pytest.mark.parametrize("said", WARNED)
def test_what_a_recipe_may_have_brought_along_is_said(said: str) -> None:
    check, config = WARNED[said]
    with pytest.warns(UserWarning, match=f"^{said}"):
        check(config)


@pytest.mark.parametrize("name", TRAIN)
def test_no_recipe_for_rl_is_refused(name: str) -> None:
    check_train(TRAIN[name](), {})


def test_actors_on_cpus_are_warned_of_where_a_gpu_is_asked_for() -> None:
    config = TrainConfig(device="cuda", ray=RayConfig(actors=2))
    with pytest.warns(
        UserWarning, match=r"device is 'cuda', and the 2 ray.actors, which roll out, have no GPU; give --ray.gpus"
    ):
        check_train(config, TOKENS)


@pytest.mark.filterwarnings("error")
def test_what_has_an_effect_is_not_said() -> None:
    for name in SFT:
        check_sft(SFT[name]())
    for name in CONTINUAL:
        _check_effect(CONTINUAL[name]())
    ray = RayConfig(address="auto", learners=1, actors=1, simulators=1, cpus=2, gpus=1, answer_timeout_s=9)
    check_train(
        TrainConfig(ray=replace(ray, simulator_cpus=2, learner_cpus=2, learner_gpus=1, divide="copies")), TOKENS
    )
    check_train(TrainConfig(device="cuda", ray=RayConfig(actors=2, gpus=1)), TOKENS)
    check_train(TrainConfig(sampling=SamplingConfig(temperature=1.6, max_oversampling=9)), TOKENS)
    check_train(TrainConfig(sampling=SamplingConfig(eta=0.5), denoising=DenoisingConfig(last_steps=3)), DIFFUSION)
    check_eval(EvalConfig(greedy=False, temperature=1.6))
    same = SuiteConfig(name="fake_suite:make")
    _check_effect(continual(warmup=SFTConfig(suite=same, seed=3), demos=DemosConfig(suite=same)))


@pytest.mark.parametrize("head", ["tokens", "diffusion"])
def test_what_a_policy_says_it_does_not_use_changes_nothing_and_the_rest_does(head: Any) -> None:
    policy = small.make(head=head).eval()
    batch = small.observations(["press it"] * 4)

    def acted(**settings: float) -> np.ndarray:
        generators = [np.random.default_rng(row) for row in range(4)]
        with torch.no_grad():
            return policy.act(batch, Sampling(**settings), generators).actions

    for name, value in (("temperature", 50.0), ("eta", 0.25), ("sigma_min", 0.5)):
        same = np.array_equal(acted(), acted(**{name: value}))
        assert same is (f"sampling.{name}" in policy.unused_settings), name


def test_an_evaluation_refuses_a_temperature_that_greedy_actions_lack() -> None:
    with pytest.raises(UserError, match=r"temperature is 1\.6"):
        evaluation_pairs(make_suite(SuiteConfig(name="fake_suite:make")), EvalConfig(temperature=1.6))


def test_a_saved_policy_that_keeps_its_own_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_dataset.write(tmp_path / "data")
    dataset = LeRobotDataset(tmp_path / "data")
    (tmp_path / "policy").mkdir()
    policy = FakePolicy(chunk_length=4)
    monkeypatch.setattr(imitation, "load_policy", lambda folder: policy)
    monkeypatch.setattr(imitation, "require_fits", lambda *_: None)
    config = SFTConfig(policy=str(tmp_path / "policy"), head="diffusion", chunk_length=8, bounds="quantile")
    with pytest.warns(UserWarning, match="keeps its own") as said:
        imitation.start_policy(config, dataset)
    assert [str(one.message).split(" has no effect: ")[0] for one in said] == [
        "bounds is 'quantile' and",
        "chunk_length is 8 and",
        "head is 'diffusion' and",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        imitation.start_policy(SFTConfig(policy=config.policy, chunk_length=4), dataset)


def test_a_bottleneck_has_no_alpha() -> None:
    bank = AdapterBank(small.make())
    with pytest.warns(UserWarning, match="alpha is 8.0 and has no effect: a bottleneck has none"):
        bank.add("salad", AdapterConfig(kind="bottleneck", rank=2, alpha=8, targets=("sublayers",)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("train tabletop_nano --resume RUN", "the recipe 'tabletop_nano' and --resume"),
        ("train --resume RUN --run other", "--run other and --resume"),
        ("eval --policy p --overwrite", "--overwrite without --out"),
        ("compare a.json b.json --overwrite", "--overwrite without --out"),
        (
            "adapters new p out --name a --start-from b --adapter.rank 4",
            "rank is 4 and has no effect: it is that of 'b'",
        ),
    ],
)
def test_flags_without_effect(
    arguments: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("simplevla.adapters.load.load_policy", lambda folder: small.make())
    run = tmp_path / "run"
    run.mkdir()
    write_config(run, TrainConfig())
    assert cli.main(arguments.replace("RUN", str(run)).split()) == 2
    assert said in capsys.readouterr().err


def test_a_finished_demo_of_another_seed_is_not_shown_for_this_one(tmp_path: Path) -> None:
    write_json(tmp_path / "summary.json", {"seed": 0})
    with pytest.raises(UserError, match="was done with the seed 0, got 1; give another --run"):
        demo(tmp_path, seed=1)
