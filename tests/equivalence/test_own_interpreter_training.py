"""RL, its report, and tasks one after another, with a suite in an interpreter of its own: the local run's to the last bit."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from simplevla.adapters.config import AdapterConfig, ContinualConfig
from simplevla.config import OptimizerConfig, RolloutConfig, SamplingConfig, SuiteConfig, TrainConfig
from simplevla.report.continual import write_continual_report
from simplevla.report.evidence import gather_evidence
from simplevla.report.page import write_report
from simplevla.storage import read_json
from simplevla.training.continual import continual
from simplevla.training.loop import train
from simplevla.training.runlog import read_rows
from small_tinyvla import for_fake_suite

TASKS = ("reach", "near", "far")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "policy"
    for_fake_suite(TASKS).save(folder)
    return folder


def config(base: Path, python: str | None) -> TrainConfig:
    return TrainConfig(
        suite=SuiteConfig(name="fake_suite:make", tasks=TASKS, python=python),
        policy=str(base),
        updates=1,
        minibatches=1,
        sampling=SamplingConfig(groups=2, group_size=4, temperature=1.0),
        optimizer=OptimizerConfig(lr=1e-2),
        rollout=RolloutConfig(workers=1, slots_per_worker=4),
        eval_every=1,
        eval_episodes_per_task=1,
    )


def assert_same_weights(folders: list[Path]) -> None:
    ours, theirs = (load_file(next(folder.glob("*.safetensors"))) for folder in folders)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[name], err_msg=name)


def test_a_run_and_its_report(base: Path, tmp_path: Path) -> None:
    found: list[Any] = []
    for name, python in (("local", None), ("own", sys.executable)):
        run = tmp_path / name
        train(config(base, python), run)
        gather_evidence(run)
        write_report(run)
        assert (run / "report.html").stat().st_size > 10_000
        found.append([read_json(run / "eval" / f"{stage}.json")["episodes"] for stage in ("before", "after")])
    assert found[0] == found[1]
    assert read_rows(run)[-1]["groups_mixed"] > 0
    # The interpreter may move: each run goes on in the other's.
    for name, python in (("local", sys.executable), ("own", None)):
        train(replace(config(base, python), updates=2), tmp_path / name, resume=True)
    assert_same_weights([tmp_path / name / "policy" for name in ("local", "own")])


def test_tasks_one_after_another(base: Path, tmp_path: Path) -> None:
    for name, python in (("local", None), ("own", sys.executable)):
        adapter = AdapterConfig(rank=2, alpha=2.0)
        settings = ContinualConfig(train=config(base, python), tasks=("reach", "far"), adapter=adapter)
        continual(settings, tmp_path / name)
        write_continual_report(tmp_path / name)
        assert (tmp_path / name / "continual.html").stat().st_size > 10_000
    ours, theirs = (read_json(tmp_path / name / "continual.json") for name in ("local", "own"))
    assert (ours["matrix"], ours["n"], ours["episodes"]) == (theirs["matrix"], theirs["n"], theirs["episodes"])
    assert_same_weights([tmp_path / name / "1_reach" / "adapter" for name in ("local", "own")])
