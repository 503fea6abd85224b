"""Plans as the command line makes them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fake_suite import FakeSuite
from simplevla import recipes
from simplevla.adapters.config import AdapterConfig
from simplevla.adapters.load import load_policy
from simplevla.cli import main
from simplevla.config import (
    DenoisingConfig,
    OptimizerConfig,
    RayConfig,
    RolloutConfig,
    SamplingConfig,
    SuiteConfig,
    TrainConfig,
)
from simplevla.planning.measured import FILE, simulator_key
from simplevla.planning.plan import Machine, Plan, plan, remedies
from simplevla.planning.unfilled import add_trained_adapter, published_openvla_oft, supervised
from simplevla.policies.base import Policy
from simplevla.policies.registry import ARCHITECTURES
from simplevla.storage import read_json
from simplevla.suites.registry import make_suite
from toy_policy import ToyPolicy

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    code = main(["plan", *arguments])
    return code, capsys.readouterr().out.splitlines()


def test_a_cpu_recipe_fits_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = run(capsys, "tabletop_nano", "--gpus", "0", "--memory", "8", "--rollout.workers", "2")
    assert code == 0
    assert lines[-2].startswith("seconds: about ")
    assert lines[-1].startswith("fits: ")


def test_what_would_fit_counts_simulators_and_episodes_too(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("tabletop_nano", "--gpus", "0", "--rollout.workers", "2", "--memory")
    code, lines = run(capsys, *arguments, "0.9")
    assert code == 1
    assert lines[-1].startswith("doesn't fit: needs ")
    assert "smaller micro-batches (--microbatch-decisions 1" in lines[-1]
    # The process and its simulators alone are 0.77 GB, whatever the policy does.
    assert run(capsys, *arguments, "0.7")[1][-1].endswith("no single change that is known here makes it fit")


def test_the_adapter_s_recipe_fits_24_gb(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = run(capsys, "libero_spatial_lora_24gb", "--gpus", "1", "--memory", "24")
    assert (code, lines[-1].split()[0]) == (0, "fits:")
    assert lines[-2] == "seconds: none, since nobody has measured an update on a GPU"


def test_all_parameters_need_8_large_gpus() -> None:
    config = recipes.TRAIN["libero_spatial_one_demo"]()

    def make(adapter_rank: int) -> Policy:
        policy = published_openvla_oft(make_suite(config.suite))
        if adapter_rank:
            add_trained_adapter(policy, AdapterConfig(rank=adapter_rank, alpha=adapter_rank))
        return policy

    found = plan(config, make(0))
    assert found.fits(Machine(gpus=8, memory_gb=80))
    assert not found.fits(Machine(gpus=8, memory_gb=24))
    # 7.4 billion: 2 + 4 + 4 bytes each and moments of 2 are still more than 80 GB.
    assert remedies(found, make, 0, Machine(gpus=1, memory_gb=80)) == [
        "an adapter of rank 32 (--adapter-rank 32)",
        "4 GPUs",
    ]
    frozen = replace(found, config=replace(found.config, denoising=DenoisingConfig(frozen_backbone=True)))
    assert "4 GPUs" not in remedies(frozen, make, 0, Machine(gpus=1, memory_gb=80))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan"], "no recipe given"),
        (["plan", "tabletop_nanno", "--gpus", "0", "--memory", "8"], "Did you mean 'tabletop_nano'"),
        (["plan", "tabletop_continual", "--gpus", "0", "--memory", "8"], "unknown recipe 'tabletop_continual'"),
        (["plan", "tabletop_nano", "--gpus", "-1", "--memory", "8"], "gpus is -1; expected at least 0"),
        (["plan", "tabletop_nano", "--gpus", "0", "--memory", "-8"], "memory_gb is -8.0; expected above 0"),
        (
            ["plan", "tabletop_nano", "--gpus", "0", "--memory", "8", "--microbatch-decisions", "1000000000"],
            "a batch of 1000000000 decisions has",
        ),
        (["plan", "tabletop_nano", "--gpus", "0", "--memory", "8", "--policy", "nowhere"], "nowhere holds no policy"),
    ],
)
def test_mistakes_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_policy_and_a_suite_that_nobody_measured_are_planned_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "toy", lambda: ToyPolicy)
    suite = FakeSuite(("reach",))
    toy = supervised_toy(suite)
    toy.save(tmp_path / "policy")
    assert isinstance(load_policy(tmp_path / "policy"), ToyPolicy)
    arguments = ("--suite.name", "fake_suite:make", "--policy", str(tmp_path / "policy"), "--rollout.workers", "1")
    code, lines = run(capsys, "tabletop_nano", "--gpus", "0", "--memory", "8", *arguments)
    assert (code, lines[-1][:5]) == (0, "fits:")
    assert lines[-2].startswith("seconds: none, since only the recipe tabletop_nano's costs were measured")
    assert "since none of fake_suite:make, 8 px was" in " ".join(" ".join(lines).split())
    # It has no gradient checkpointing, which makes that no remedy, and no error.
    code, lines = run(capsys, "tabletop_nano", "--gpus", "1", "--memory", "0.9", *arguments)
    assert (code, lines[-1]) == (
        1,
        "doesn't fit: needs 1.00 of 0.9 GB on each GPU; no single change that is known here makes it fit",
    )


def supervised_toy(suite: FakeSuite) -> ToyPolicy:
    recipe = replace(recipes.SFT["tabletop_nano"](), policy="toy_small")
    made = supervised(recipe, suite)
    assert isinstance(made, ToyPolicy)
    return ToyPolicy(made.sizes, made.statistics, made.tokenizer)


@pytest.fixture(scope="module")
def nano() -> Plan:
    config = replace(recipes.TRAIN["tabletop_nano"](), rollout=RolloutConfig(workers=2, slots_per_worker=128))
    return plan(config, supervised(recipes.SFT["tabletop_nano"](), make_suite(config.suite)))


def test_seconds_are_those_of_measured_updates(nano: Plan) -> None:
    wholes = read_json(RESULTS / "scaling.json")["whole_updates"]
    expected = nano.seconds()
    for part, name in (("rollout", "collect_s"), ("training", "update_s")):
        assert expected[part] == pytest.approx(sum(row[name] for row in wholes) / len(wholes), rel=0.2)


def test_seconds_follow_the_numbers_of_episodes(nano: Plan) -> None:
    def seconds(**changes: object) -> dict[str, float]:
        return replace(nano, config=replace(nano.config, **changes)).seconds()  # type: ignore[arg-type]

    once, twice = (seconds(sampling=SamplingConfig(groups=groups)) for groups in (32, 64))
    assert twice["rollout"] == pytest.approx(2 * once["rollout"])
    assert once["training"] < twice["training"] < 2 * once["training"]
    # Off, as many episodes are sampled as train, in place of 2.3 times as many.
    assert seconds(sampling=SamplingConfig(groups=32, dynamic=False))["rollout"] < 0.5 * once["rollout"]


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_checkpointing": True},
        {"rollouts_ahead": True},
        {"microbatch_decisions": 8},
        {"minibatches": 1},
        {"ray": RayConfig(actors=2)},
        {"rollout": RolloutConfig(bfloat16=True)},
        {"precision": "bfloat16"},
        {"optimizer": OptimizerConfig(moments="8bit")},
    ],
)
def test_nothing_is_said_of_times_that_were_not_measured(nano: Plan, changes: dict[str, object]) -> None:
    assert nano.seconds()
    assert replace(nano, config=replace(nano.config, **changes)).seconds() == {}  # type: ignore[arg-type]
    assert replace(nano, simulators="tabletop, 128 px").seconds() == {}
    for sizes in (replace(nano.sizes, trained=(5,)), replace(nano.sizes, parameters=5)):
        assert replace(nano, sizes=sizes).seconds() == {}


def test_every_gpu_has_simulators_on_the_host(nano: Plan) -> None:
    assert nano.host(8)["simulators"] == 8 * nano.host(1)["simulators"] == 8 * nano.host(0)["simulators"]
    assert nano.host(8)["the driver's policy"] == nano.sizes.weight_bytes
    assert "the driver's policy" not in nano.host(1)
    assert nano.memory(0).kept["simulators"] == 2 * 176_453_632
    assert "simulators" not in nano.memory(1).kept
    # A byte more and a byte less: in GB the total itself may be rounded either way.
    assert nano.fits(Machine(gpus=0, memory_gb=(nano.memory(0).total + 1) / 1e9))
    assert not nano.fits(Machine(gpus=0, memory_gb=(nano.memory(0).total - 1) / 1e9))


def test_a_simulator_that_nobody_measured_is_as_large_as_the_largest(nano: Plan) -> None:
    assert replace(nano, simulators="tabletop, 512 px").worker_memory() == (176.453632, "tabletop, 64 px")
    other = replace(nano, simulators="Meta-World lite, 64 px").worker_memory()
    assert other == (1525.665792, "LIBERO stock, stock stepping, 64 px")


def test_episodes_are_counted_up_to_the_horizon(nano: Plan) -> None:
    horizon = max(task.horizon for task in make_suite(TrainConfig().suite).tasks)
    assert nano.longest == -(-horizon // 4)
    assert nano.host(0)["stored episodes"] == 32 * 8 * nano.longest * nano.sizes.stored_bytes


def test_measured_costs_say_where_they_are_from() -> None:
    assert len(json.loads(FILE.read_text())["commit"]) >= 40


def test_keys() -> None:
    assert simulator_key(SuiteConfig(name="libero_10"), 256) == "LIBERO stock, stock stepping, 256 px"
    assert simulator_key(SuiteConfig(name="metaworld", visuals="lite"), 64) == "Meta-World lite, 64 px"


def test_files_are_part_of_the_package() -> None:
    assert Path("src/simplevla/planning/measured.json").name in Path("pyproject.toml").read_text()


def test_several_gpus_are_not_planned_with_what_their_learners_refuse(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["tabletop_nano_diffusion", "--denoising.frozen-backbone", "--memory", "0.5"]
    assert main(["plan", *arguments, "--gpus", "2"]) == 2
    assert "which ray.learners can't have yet" in capsys.readouterr().err
