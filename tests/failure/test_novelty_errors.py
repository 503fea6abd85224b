"""Novelty refuses in one line what it can't compare, and leaves nothing behind."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from simplevla.adapters.bank import AdapterBank
from simplevla.adapters.config import AdapterConfig
from simplevla.adapters.load import load_policy
from simplevla.adapters.routing import RoutedPolicy
from simplevla.cli import main
from simplevla.config import DemosConfig, EvalConfig, RolloutConfig, SFTConfig, SuiteConfig, TrainConfig, to_dict
from simplevla.demonstrations.generate import generate
from simplevla.errors import UserError
from simplevla.novelty.behaviour import Novelty, solved_episodes
from simplevla.novelty.replay import Replay
from simplevla.policies.base import Policy
from simplevla.policies.trained_on import TrainedOn
from simplevla.report.contents import doubts, read_run
from simplevla.report.novelty import novelty_table, read_novelty
from simplevla.rollout.scheduler import RolloutEngine
from simplevla.runs import novelty_of, novelty_of_run
from simplevla.storage import write_json
from simplevla.suites.registry import make_suite
from small_tinyvla import for_fake_suite

TASKS = ("trivial", "far")
ROLLOUT = RolloutConfig(workers=1, slots_per_worker=2)


def suite(*tasks: str) -> SuiteConfig:
    return SuiteConfig(name="fake_suite:make", tasks=tasks)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two demonstrations of each task."""
    folder = tmp_path_factory.mktemp("demos") / "demos"
    generate(DemosConfig(suite=suite(*TASKS), episodes=4, workers=1, noise=0.0), folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that solves the trivial task alone."""
    folder = tmp_path_factory.mktemp("policy") / "policy"
    for_fake_suite(TASKS).save(folder)
    return folder


def compared(
    policy: Path, demos: Path, out: Path, config: SuiteConfig, other: Path | None = None, adapter: str = ""
) -> Novelty:
    return novelty_of(policy, other or policy, demos, config, out, ROLLOUT, adapter=adapter)


def test_a_policy_is_no_news_to_itself_and_a_suite_may_tell_no_events(
    policy: Path, demos: Path, tmp_path: Path
) -> None:
    found = compared(policy, demos, tmp_path / "novelty", suite("trivial"))
    assert found.before == found.after
    assert found.paired == (2, 0, 0, 1.0)
    assert read_novelty(tmp_path)[0] == found
    assert [film.episode.task for film in read_novelty(tmp_path)[1]] == ["trivial"]
    assert "The suite tells no events." in str(novelty_table(found).caption)


def test_what_the_environment_broke_is_no_episode_of_the_policy(policy: Path, tmp_path: Path) -> None:
    config = suite("trivial", "crash")
    with RolloutEngine(config, replace(ROLLOUT, max_attempts=1), 4) as engine:
        jobs, episodes = solved_episodes(engine, load_policy(policy), make_suite(config), EvalConfig(), "before")
    assert [(job.task.name, job.initial_state) for job in jobs] == [("trivial", 4), ("trivial", 5)]
    assert episodes == 2


def test_the_report_says_that_the_policy_has_been_trained_on(policy: Path, demos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(policy, run / "policy")
    write_json(run / "config.json", {"title": "mine"})
    compared(policy, demos, run / "novelty", suite("trivial"))
    said = "novelty.json is not of the policy in this run"
    assert not any(said in doubt for doubt in doubts(read_run(run)))
    other = for_fake_suite(TASKS)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    shutil.rmtree(run / "policy")
    other.save(run / "policy")
    assert any(said in doubt for doubt in doubts(read_run(run)))


def test_fewer_than_two_demonstrations_of_a_task(policy: Path, demos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task 'near' has 0 demonstrations; novelty needs at least 2"):
        compared(policy, demos, tmp_path / "out", suite("trivial", "near"))
    assert not (tmp_path / "out").exists()


def test_demonstrations_of_another_suite(policy: Path, demos: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"has states of 3 numbers, suite 'tabletop' of 4; expected demonstrations of this"
    ):
        compared(policy, demos, tmp_path / "out", SuiteConfig())


def test_policies_of_different_suites(policy: Path, demos: Path, tmp_path: Path) -> None:
    other = for_fake_suite(TASKS)
    for name in ("here", "there"):
        other.trained_on = (TrainedOn(stage="sft", suite=name),)
        other.save(tmp_path / name)
    with pytest.raises(
        UserError, match=r"trained on different suites, here and there; novelty compares two of one suite"
    ):
        compared(tmp_path / "here", demos, tmp_path / "out", suite("trivial"), tmp_path / "there")


def test_no_solved_episode(policy: Path, demos: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"neither policy solved one of 2 episodes, so there is no behaviour to compare"
    ):
        compared(policy, demos, tmp_path / "out", suite("far"))
    assert not (tmp_path / "out").exists()


def a_run(folder: Path, policy: Path, imitation: dict[str, object] | None) -> Path:
    """A finished run of RL, and beside its first policy what its imitation was."""
    for name in ("sft", "rl"):
        shutil.copytree(policy, folder / name / "policy")
    if imitation is not None:
        write_json(folder / "sft" / "config.json", imitation)
    config = TrainConfig(policy=str(folder / "sft" / "policy"), suite=suite("trivial"), rollout=ROLLOUT)
    write_json(folder / "rl" / "config.json", to_dict(config))
    write_json(folder / "rl" / "environment.json", {})
    return folder / "rl"


def test_a_run_is_compared_with_what_its_imitator_saw(policy: Path, tmp_path: Path) -> None:
    generate(DemosConfig(suite=suite("trivial"), episodes=4, workers=1, noise=0.3), tmp_path / "demos", progress=False)
    imitation = to_dict(SFTConfig(dataset=str(tmp_path / "demos"), episodes="2:4"))
    found = novelty_of_run(a_run(tmp_path, policy, imitation))
    assert found.demonstrations.episodes == 2
    near = {episode.nearest for side in found.sides.values() for episode in side.solved}
    assert near == {2, 3}, "the dataset's own numbers"


def test_the_adapter_of_a_task_acts_where_it_is_asked_for(
    policy: Path, demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = AdapterBank(load_policy(policy))
    for name in TASKS:
        bank.add(name, AdapterConfig(rank=2), instructions=[f"do {name}"])
    bank.activate("far", training=False)
    bank.save(tmp_path / "adapted")
    acted: list[Policy] = []

    def noted(engine: RolloutEngine, acting: Policy, *rest: Any) -> tuple[list[Replay], int]:
        acted.append(acting)
        return solved_episodes(engine, acting, *rest)

    monkeypatch.setattr("simplevla.runs.solved_episodes", noted)
    with pytest.warns(UserWarning, match="adapter 'far' acts on 'do trivial', an instruction of adapter 'trivial'"):
        as_saved = compared(policy, demos, tmp_path / "saved", suite("trivial"), tmp_path / "adapted")
    routed = compared(policy, demos, tmp_path / "out", suite("trivial"), tmp_path / "adapted", "routed")
    assert [isinstance(acting, RoutedPolicy) for acting in acted] == [False, False, False, True]
    assert (as_saved.adapter, routed.adapter) == ("", "routed")
    for after, said in (("adapted", "has no adapter 'near'; name one"), (None, "neither policy has adapters")):
        with pytest.raises(UserError, match=said):
            compared(policy, demos, tmp_path / "none", suite("trivial"), after and tmp_path / after, "near")
    assert len(acted) == 4, "they are refused before anything acts"


@pytest.mark.parametrize("imitation", [None, {"policy": "nano"}])
def test_a_run_that_knows_no_demonstrations(policy: Path, imitation: dict[str, object] | None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"was trained on: name the dataset with --demos FOLDER"):
        novelty_of_run(a_run(tmp_path, policy, imitation))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to compare; give a run, or --before, --after, --demos and --out"),
        (["RUN", "--before", "a"], "--before was given with the run"),
        (["RUN", "--suite.name", "libero_goal"], "which has its own policies and settings; leave it out, or give --be"),
        (["RUN", "--rollout.workers", "3"], "--rollout was given with the run"),
        (["RUN", "--device", "cuda"], "--device was given with the run"),
        (["RUN"], "it isn't the folder of a run"),
    ],
)
def test_what_the_command_refuses(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["novelty", *(str(tmp_path) if word == "RUN" else word for word in arguments)]) == 2
    assert said in capsys.readouterr().err


def test_the_command_compares_a_run_and_two_policies(policy: Path, demos: Path, tmp_path: Path) -> None:
    run = a_run(tmp_path, policy, to_dict(SFTConfig(dataset=str(demos))))
    assert main(["novelty", str(run), "--trust-suite"]) == 0
    of_run, _ = read_novelty(run)
    assert main(["novelty", *two(policy, demos, tmp_path / "apart" / "novelty", "trivial")]) == 0
    assert read_novelty(tmp_path / "apart")[0] == of_run


@pytest.mark.parametrize(("task", "said"), [("far", "neither policy solved one"), ("near", "needs at least 2")])
def test_the_command_says_in_one_line_what_it_cannot_compare(
    task: str, said: str, policy: Path, demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["novelty", *two(policy, demos, tmp_path / "out", task)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert said in line
    assert not (tmp_path / "out").exists()


def two(policy: Path, demos: Path, out: Path, task: str) -> list[str]:
    """The command's arguments that compare a policy with itself on one task."""
    folders = {"before": policy, "after": policy, "demos": demos, "out": out}
    settings = ["--suite.name", "fake_suite:make", "--suite.tasks", task, "--rollout.workers", "1"]
    return [word for key, folder in folders.items() for word in (f"--{key}", str(folder))] + settings
