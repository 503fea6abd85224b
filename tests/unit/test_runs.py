"""What a config asks for on a cluster is done there, from Python and from the command line alike."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import simplevla
from simplevla import recipes, runs
from simplevla.config import LearnersConfig, RayConfig
from simplevla.distributed.engine import RayEngine
from simplevla.distributed.learner import RayImitator, RayLearner
from simplevla.distributed.simulators import engine_with_remote_simulators
from simplevla.training import continual, imitation, loop
from simplevla.training.imitator import Imitator
from simplevla.training.learner import Learner

ASKED = [
    (RayConfig(), loop.local_engine, Learner),
    (RayConfig(actors=2), RayEngine, Learner),
    (RayConfig(simulators=2), engine_with_remote_simulators, Learner),
    (RayConfig(actors=1, learners=2), RayEngine, RayLearner),
]


@pytest.mark.parametrize(("ray", "engine", "learner"), ASKED)
def test_rl_runs_where_its_config_says(
    ray: RayConfig, engine: Any, learner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: dict[str, Any] = {}
    monkeypatch.setattr(loop, "train", lambda *positional, **named: got.update(named, run=positional[1]))
    simplevla.train(replace(recipes.TRAIN["tabletop_nano"](), ray=ray), "runs/mine")
    assert got == {"run": Path("runs/mine"), "make_engine": engine, "make_learner": learner}


@pytest.mark.parametrize(("ray", "engine", "learner"), ASKED)
@pytest.mark.parametrize(("learners", "imitator"), [(0, Imitator), (2, RayImitator)])
def test_each_stage_of_continual_training_runs_where_its_config_says(
    ray: RayConfig, engine: Any, learner: Any, learners: int, imitator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[Any] = []
    monkeypatch.setattr(continual, "continual", lambda *positional: got.extend(positional))
    config = recipes.CONTINUAL["tabletop_continual"]()
    warmup = replace(config.warmup, ray=LearnersConfig(learners=learners))
    simplevla.continual(replace(config, train=replace(config.train, ray=ray), warmup=warmup), "runs/mine", resume=True)
    assert got[1:] == [Path("runs/mine"), True, continual.Makers(engine=engine, learner=learner, imitator=imitator)]


def test_imitation_runs_where_its_config_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imitation, "sft", lambda config, run, resume, make_trainer: (run, resume, make_trainer))
    config = replace(recipes.SFT["tabletop_nano"](), ray=LearnersConfig(learners=2))
    assert runs.sft(config, "runs/mine", resume=True) == (Path("runs/mine"), True, RayImitator)  # type: ignore[comparison-overlap]
