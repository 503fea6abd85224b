"""Plans as the command line makes them."""

import json
from pathlib import Path

import pytest

from simplevla import recipes
from simplevla.cli import main
from simplevla.config import SuiteConfig, TrainConfig
from simplevla.planning.measured import FILE, measured, simulator_key
from simplevla.planning.memory import Sizes
from simplevla.planning.plan import (
    NETWORK,
    NVLINK,
    OBJECT_STORE,
    Machine,
    exchange_seconds,
    plan,
    weights_seconds,
    workload,
)
from simplevla.planning.unfilled import supervised
from simplevla.suites.registry import make_suite

HALF = Sizes(
    parameters=10**9,
    weight_bytes=2 * 10**9,
    trained=(10**9,),
    trained_half=10**9,
    layer_bytes=0,
    outside_bytes=0,
    stored_bytes=0,
)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["plan", *arguments])
    return code, capsys.readouterr().out.splitlines()[-1]


def test_a_cpu_recipe_fits_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code, line = run(capsys, "tabletop_nano", "--gpus", "0", "--memory", "8")
    assert code == 0
    assert line.startswith("fits: ")
    code, line = run(capsys, "tabletop_nano", "--gpus", "0", "--memory", "0.5")
    assert code == 1
    assert line.startswith("doesn't fit: needs ")
    assert "smaller micro-batches" in line


def test_the_adapter_s_recipe_fits_24_gb(capsys: pytest.CaptureFixture[str]) -> None:
    code, line = run(capsys, "libero_spatial_lora_24gb", "--gpus", "1", "--memory", "24")
    assert (code, line.split()[0]) == (0, "fits:")


def test_all_parameters_need_8_large_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("libero_spatial_one_demo", "--gpus", "8", "--memory")
    assert run(capsys, *arguments, "80")[0] == 0
    code, line = run(capsys, *arguments, "24")
    assert code == 1
    assert "of 24 GB on each GPU" in line


def test_one_large_gpu_needs_an_adapter_for_all_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    code, line = run(capsys, "libero_spatial_one_demo", "--gpus", "1", "--memory", "80")
    assert code == 1
    assert "--adapter-rank 32" in line
    # 7.4 billion: 2 + 4 + 4 bytes each and moments of 2 are still more than 80 GB.
    assert "8-bit" not in line
    assert "GPUs" in line.partition("what would fit")[2]


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
        (["plan", "tabletop_nano", "--gpus", "8", "--memory", "8", "--simulators", "4"], "4 simulators for 8 GPUs"),
        (["plan", "tabletop_nano", "--gpus", "0", "--memory", "8", "--policy", "nowhere"], "nowhere holds no policy"),
    ],
)
def test_mistakes_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_more_gpus_shorten_rollouts_and_updates() -> None:
    config = recipes.TRAIN["tabletop_nano"]()
    suite = make_suite(config.suite)
    one, four = (
        plan(config, supervised(recipes.SFT["tabletop_nano"](), suite), Machine(gpus=n, memory_gb=80)) for n in (1, 4)
    )
    # The same simulators and cores for each GPU.
    assert max(four.rollout.values()) < max(one.rollout.values())
    assert four.rollout["cores"] == pytest.approx(one.rollout["cores"] / 4)
    assert four.counts == one.counts
    assert four.seconds == pytest.approx(max(four.rollout.values()) + four.update_s + four.weights_s)


def test_what_learners_exchange() -> None:
    # 100 decisions for each of 8 GPUs are 25 micro-batches of 4: weights twice, gradients once, 7/8 of each from others.
    config = TrainConfig(microbatch_decisions=4)
    assert exchange_seconds(HALF, config, 8, 800) == pytest.approx(25 * 6e9 * 7 / 8 / NVLINK)
    assert exchange_seconds(HALF, config, 16, 1600) == pytest.approx(25 * 6e9 * 15 / 16 / NETWORK)
    assert exchange_seconds(HALF, config, 1, 100) == 0
    # Into the store once, out of it on each of two machines.
    assert weights_seconds(HALF, 16) == pytest.approx(3 * 2e9 / OBJECT_STORE)
    assert weights_seconds(HALF, 1) == 0


def test_the_workload_of_a_paper_s_update() -> None:
    config = recipes.TRAIN["libero_spatial_one_demo"]()
    counts, trained = workload(config, make_suite(config.suite), 8)
    # 512 episodes train, 768 are sampled; 40 % of 512 env steps are 25.6 decisions.
    assert counts.episodes == 768
    assert counts.decisions == pytest.approx(768 * 25.6)
    assert counts.longest == 64
    assert trained == pytest.approx(512 * 25.6)


def test_measured_costs_are_of_every_training_recipe() -> None:
    assert len(json.loads(FILE.read_text())["commit"]) >= 40
    for recipe in recipes.TRAIN.values():
        suite = recipe().suite
        height, _ = next(iter(make_suite(suite).spec.cameras.values()))
        assert simulator_key(suite, height) in measured().simulators


def test_keys() -> None:
    assert simulator_key(SuiteConfig(name="libero_10"), 256) == "LIBERO stock, stock stepping, 256 px"
    assert simulator_key(SuiteConfig(name="metaworld", visuals="lite"), 64) == "Meta-World lite, 64 px"


def test_files_are_part_of_the_package() -> None:
    assert Path("src/simplevla/planning/measured.json").name in Path("pyproject.toml").read_text()
