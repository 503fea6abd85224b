import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fake_policy import FakePolicy
from fake_suite import FakeSuite
from sampled_episodes import load_fake_policy
from simplevla.config import RolloutConfig, SamplingConfig, SuiteConfig, TrainConfig
from simplevla.rollout.collect import Collection, NoSignal
from simplevla.training import loop
from simplevla.training.checkpoint import list_checkpoints
from simplevla.training.learner import Learner


def config(folder: Path, task: str, stop_at: float | None) -> TrainConfig:
    FakePolicy().save(folder)
    return TrainConfig(
        suite=SuiteConfig(name="fake_suite:make", tasks=(task,)),
        policy=str(folder),
        updates=1,
        minibatches=1,
        sampling=SamplingConfig(groups=1, group_size=4, temperature=1.0, dynamic=False),
        rollout=RolloutConfig(workers=1, slots_per_worker=2),
        eval_every=1,
        eval_episodes_per_task=2,
        stop_at=stop_at,
    )


def test_a_run_stops_when_the_evaluation_is_as_good_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "load_policy", load_fake_policy)
    # Solved whatever the policy does: the first evaluation shows exactly 100 %.
    reached = loop.train(config(tmp_path / "a", "trivial", 1.0), tmp_path / "reached")
    assert (reached.reason, reached.update) == ("reached", 0)
    assert (tmp_path / "reached" / "policy").is_dir()
    # Never solved: the run goes on to its last update.
    finished = loop.train(config(tmp_path / "b", "impossible", 0.1), tmp_path / "finished")
    assert (finished.reason, finished.update) == ("finished", 1)


def test_a_run_that_reached_its_goal_between_checkpoints_can_be_extended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "load_policy", load_fake_policy)
    goal = replace(config(tmp_path / "a", "trivial", 1.0), updates=9, checkpoint_every=9, eval_every=2)
    results = iter([False, False, False, True, True, True])
    monkeypatch.setattr(loop, "_reached", lambda *_: next(results))
    outcome = loop.train(goal, tmp_path / "run")
    assert (outcome.reason, outcome.update) == ("reached", 2)
    monkeypatch.setattr(loop, "_reached", lambda *_: False)
    longer = replace(goal, updates=3, stop_at=None)
    assert loop.train(longer, tmp_path / "run", resume=True).update == 3


def test_checkpoints_are_missed_by_what_the_run_was_begun_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "load_policy", load_fake_policy)
    settings = replace(config(tmp_path / "a", "trivial", None), updates=4, checkpoint_every=9, eval_every=0)
    update, killed = Learner.update, [True]

    def stopped(self: Learner, groups: Any, advantages: Any, number: int) -> Any:
        if number == 3 and killed.pop():
            raise KeyboardInterrupt
        return update(self, groups, advantages, number)

    monkeypatch.setattr(Learner, "update", stopped)
    with pytest.raises(KeyboardInterrupt):
        loop.train(settings, tmp_path / "run")
    # It never had one, so that nothing is lost by beginning again.
    killed.append(False)
    often = replace(settings, checkpoint_every=1)
    assert loop.train(often, tmp_path / "run", resume=True).update == 4
    # Now it had: less often from here on is no excuse.
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        loop.train(replace(often, checkpoint_every=9, updates=5), tmp_path / "run", resume=True)


def test_a_task_of_which_every_episode_broke_keeps_a_run_from_its_goal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other task is solved whatever the policy does, so that the rate of what is left is 100 %."""
    monkeypatch.setattr(loop, "load_policy", load_fake_policy)
    settings = config(tmp_path / "a", "trivial", 1.0)
    settings = replace(settings, suite=SuiteConfig(name="fake_suite:make", tasks=("trivial", "crash")))
    outcome = loop.train(settings, tmp_path / "run")
    assert outcome.reason != "reached"
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    assert row["eval_by_task"] == {"trivial": [2, 2], "crash": [0, 0]}
    # Two episodes, three runs of each.
    assert row["eval_errors"] == {"environment raised RuntimeError": 6}
    assert row["eval_last_error"].endswith("RuntimeError: the gripper fell off")


def test_a_goal_without_evaluations_or_beyond_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r"stop_at is 0.9 with eval_every 0"):
        TrainConfig(stop_at=0.9, eval_every=0)
    with pytest.raises(ValueError, match=r"stop_at is 1.1"):
        TrainConfig(stop_at=1.1)


def test_the_goal_s_evaluation_is_in_the_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "load_policy", load_fake_policy)
    outcome = loop.train(config(tmp_path / "a", "trivial", 1.0), tmp_path / "run")
    # Wilson of 2 of 2.
    assert "greedy success 100.0% [34.2%, 100.0%], 2 of 2 on train states" in outcome.message


def stopped(greedy: tuple[int, int], solved: tuple[int, int], folder: Path) -> str:
    """The message of a run that was evaluated, and whose next update had no signal."""
    collection = Collection(sampled=32, all_failed=32, success_by_task={"reach": solved})
    rows = [{"update": 0, "eval_n": greedy[1], "eval_by_task": {"reach": greedy}}, {"update": 1}]
    return loop._stop(NoSignal("why.", collection), FakePolicy(), folder, loop.Progress(update=1), rows).message


def test_a_run_without_signal_says_what_is_solved_greedily_and_whether_sampling_spoils_it(tmp_path: Path) -> None:
    spoiled = stopped((48, 60), (4, 256), tmp_path)
    assert spoiled.startswith("why.\nGreedy success after update 0: 80.0% [68.2%, 88.2%], 48 of 60. Sampling spoils")
    assert "lower sampling.temperature of a token head" in spoiled
    assert json.loads((tmp_path / "stopped.json").read_text())["message"] == spoiled
    poor = stopped((1, 60), (0, 256), tmp_path)
    assert "Greedy success after update 0: 1.7%" in poor
    assert "Sampling spoils" not in poor


def test_a_resume_under_another_protocol_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "load_policy", load_fake_policy)
    settings = config(tmp_path / "a", "impossible", None)
    loop.train(settings, tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop.train(settings, tmp_path / "run", resume=True)
    monkeypatch.setattr(FakeSuite, "protocol", {"suite": "fake", "horizon": 12, "visuals": "lite"})
    with pytest.warns(
        UserWarning, match="another protocol of suite 'fake': horizon was 11, now 12; visuals was None, now 'lite'"
    ):
        loop.train(settings, tmp_path / "run", resume=True)


def test_the_last_update_is_in_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "load_policy", load_fake_policy)
    settings = replace(config(tmp_path / "a", "impossible", None), updates=3, eval_every=0, checkpoint_every=2)
    loop.train(settings, tmp_path / "run")
    assert [path.name for path in list_checkpoints(tmp_path / "run/checkpoints")] == ["update_000002", "update_000003"]
