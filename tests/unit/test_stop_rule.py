import json
from dataclasses import replace
from pathlib import Path

import pytest

from fake_policy import FakePolicy
from sampled_episodes import load_fake_policy
from simplevla.config import RolloutConfig, SamplingConfig, SuiteConfig, TrainConfig
from simplevla.training import loop


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
