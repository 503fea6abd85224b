import io
import json

import pytest
from rich.console import Console

from fake_policy import FakePolicy
from simplevla.config import EvalConfig
from simplevla.evaluation.evaluate import evaluate_with
from simplevla.evaluation.result import Broken, EvaluationResult, read_result, result_table, write_result
from simplevla.rollout.scheduler import RolloutStats
from simplevla.suites.base import Suite, SuiteSpec
from simplevla.types import Episode, EpisodeStatus, Task


class TwoTasks(Suite):
    name = "two"
    spec = SuiteSpec(
        cameras={"front": (8, 8)},
        state_names=("x_m",),
        action_names=("dx",),
        action_low=(-1.0,),
        action_high=(1.0,),
        control_hz=10.0,
    )
    tasks = tuple(
        Task(name=n, instruction=n, horizon=h, horizon_reason="test") for n, h in (("lift", 30), ("push", 40))
    )
    protocol = {"renderer": "none"}  # noqa: RUF012

    def initial_states(self, task, split):
        return [0, 1, 2, 3] if split == "train" else [7, 5, 9]

    def make_environment(self):
        raise AssertionError("the engine makes environments")


TRACEBACK = """Traceback (most recent call last):
  File "workers.py", line 1, in execute
    environment.step_chunk(actions)
  File "robot.py", line 7, in step_chunk
    raise RuntimeError("the gripper fell off")
RuntimeError: the gripper fell off
"""


class StubEngine:
    """Answers every request at once by `outcome(task, state)`; delivers episodes in reverse order."""

    def __init__(self, outcome):
        self.outcome = outcome
        self.requests = []
        self.stats = RolloutStats()

    def reset_stats(self):
        self.stats = RolloutStats()

    def run(self, policy, sampling, source, sink, record=True):
        self.sampling, self.record = sampling, record
        while (request := source()) is not None:
            self.requests.append(request)
        for request in reversed(self.requests):
            status = self.outcome(request.task.name, request.initial_state)
            error = ""
            if status is EpisodeStatus.ENV_ERROR:
                error = TRACEBACK
                self.stats.errors.add("environment raised RuntimeError", TRACEBACK, 3)
            sink(Episode(request=request, status=status, error=error, env_steps=request.initial_state + 1))


def solves_lift_breaks_push_5(task, state):
    if task == "lift":
        return EpisodeStatus.SUCCESS
    return EpisodeStatus.ENV_ERROR if state == 5 else EpisodeStatus.TIMEOUT


def run(outcome, **config):
    engine = StubEngine(outcome)
    return engine, evaluate_with(engine, FakePolicy(), TwoTasks(), EvalConfig(**config))


def test_every_held_out_state_runs_once_greedy_and_unrecorded():
    engine, result = run(solves_lift_breaks_push_5)
    asked = [(r.task.name, r.initial_state) for r in engine.requests]
    assert asked == [("lift", 7), ("lift", 5), ("lift", 9), ("push", 7), ("push", 5), ("push", 9)]
    assert engine.sampling.greedy
    assert engine.record is False
    assert (result.greedy, result.temperature) == (True, None)


def test_broken_episodes_are_not_failures():
    _, result = run(solves_lift_breaks_push_5)
    assert (result.overall.solved, result.overall.n) == (3, 5)
    assert (result.by_task["lift"].solved, result.by_task["lift"].n) == (3, 3)
    assert (result.by_task["push"].solved, result.by_task["push"].n) == (0, 2)
    assert result.env_errors == 1
    assert result.broken == (Broken("push", 5, "RuntimeError: the gripper fell off"),)
    assert result.errors.counts == {"environment raised RuntimeError": 3}
    assert result.unmeasured == []
    # Wilson at 3 of 3: low = 1 / (1 + z²/3) = 0.438494
    assert result.by_task["lift"].low == pytest.approx(0.438494, abs=1e-5)


def test_outcomes_keep_the_asked_order_whatever_finishes_first():
    _, result = run(solves_lift_breaks_push_5)
    assert [(e.task, e.initial_state, e.success, e.env_steps) for e in result.episodes] == [
        ("lift", 7, True, 8),
        ("lift", 5, True, 6),
        ("lift", 9, True, 10),
        ("push", 7, False, 8),
        ("push", 9, False, 10),
    ]


def test_the_first_states_of_the_train_split_on_request():
    engine, result = run(lambda task, state: EpisodeStatus.SUCCESS, split="train", episodes_per_task=2)
    assert [(r.task.name, r.initial_state) for r in engine.requests] == [
        ("lift", 0),
        ("lift", 1),
        ("push", 0),
        ("push", 1),
    ]
    assert result.split == "train"


def test_all_states_are_those_of_both_splits():
    asked = [
        [
            (r.task.name, r.initial_state)
            for r in run(lambda task, state: EpisodeStatus.SUCCESS, split=split)[0].requests
        ]
        for split in ("train", "test", "all")
    ]
    assert set(asked[2]) == set(asked[0]) | set(asked[1])
    assert len(asked[2]) == len(asked[0]) + len(asked[1])


def test_sampled_evaluation_uses_the_temperature_and_distinct_noise():
    engine, result = run(lambda task, state: EpisodeStatus.TIMEOUT, greedy=False, temperature=1.6, seed=3)
    assert (engine.sampling.greedy, engine.sampling.temperature) == (False, 1.6)
    assert result.temperature == 1.6
    assert len({r.seed for r in engine.requests}) == 6
    assert all(r.seed[0] == 3 for r in engine.requests)


def test_noise_of_an_episode_does_not_depend_on_which_tasks_are_evaluated():
    engine, _ = run(lambda task, state: EpisodeStatus.TIMEOUT)
    only_push = StubEngine(lambda task, state: EpisodeStatus.TIMEOUT)
    suite = TwoTasks()
    suite.tasks = suite.tasks[1:]
    evaluate_with(only_push, FakePolicy(), suite, EvalConfig())
    assert [r.seed for r in only_push.requests] == [r.seed for r in engine.requests[3:]]


def test_an_evaluation_of_which_every_episode_broke_is_no_result():
    with pytest.raises(ValueError, match="broke each of the 6 episodes") as error:
        run(lambda task, state: EpisodeStatus.ENV_ERROR)
    message = str(error.value)
    assert "environment raised RuntimeError (18 times, last: RuntimeError: the gripper fell off)" in message
    assert 'File "robot.py", line 7, in step_chunk' in message
    assert "workers.py" not in message


def test_what_broke_before_the_evaluation_is_not_its_own():
    engine = StubEngine(solves_lift_breaks_push_5)
    engine.stats.errors.add("worker died (exit code 9)", "worker died (exit code 9)", 5)
    result = evaluate_with(engine, FakePolicy(), TwoTasks(), EvalConfig())
    assert result.errors.counts == {"environment raised RuntimeError": 3}


def test_a_task_of_which_every_episode_broke_has_no_rate():
    _, result = run(lambda task, state: EpisodeStatus.ENV_ERROR if task == "push" else EpisodeStatus.SUCCESS)
    push = result.by_task["push"]
    assert result.unmeasured == ["push"]
    assert str(push) == "no valid episode (n = 0)"
    assert push.to_dict() == {"solved": 0, "n": 0, "rate": None, "wilson_low": 0.0, "wilson_high": 1.0}
    screen = io.StringIO()
    Console(width=150, file=screen).print(result_table(result))
    assert screen.getvalue().count("no valid episode") == 1


def test_the_table_has_each_number_under_its_heading():
    _, result = run(solves_lift_breaks_push_5)
    screen = io.StringIO()
    Console(width=150, file=screen).print(result_table(result))
    table = [
        [cell.strip() for cell in line.replace("┃", "│").strip("│").split("│")]
        for line in screen.getvalue().splitlines()
        if "│" in line or "┃" in line
    ]
    # Two valid episodes of push, none of them solved.
    assert dict(zip(table[0], table[2], strict=True)) == {
        "task": "push",
        "success": "0.0%",
        "95 % Wilson": "0.0% to 65.8%",
        "solved": "0",
        "n": "2",
        "horizon": "40",
    }


def test_a_result_from_before_the_errors_were_kept_can_be_read():
    _, result = run(solves_lift_breaks_push_5)
    old = result.to_dict()
    del old["errors"]
    for broken in old["broken"]:
        del broken["reason"]
    read = EvaluationResult.from_dict(old)
    assert read.broken == (Broken("push", 5, ""),)
    assert read.errors.counts == {}
    assert read.episodes == result.episodes


def test_too_few_initial_states_is_an_error():
    with pytest.raises(ValueError, match="has 3 test initial states; expected at least 4"):
        run(solves_lift_breaks_push_5, episodes_per_task=4)


def test_the_fingerprint_is_of_the_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"abc")
    result = evaluate_with(
        StubEngine(solves_lift_breaks_push_5), FakePolicy(), TwoTasks(), EvalConfig(), policy_folder=tmp_path
    )
    # sha256("abc") from FIPS 180-2, appendix B.1
    assert result.policy_sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_progress_counts_up():
    seen = []
    evaluate_with(
        StubEngine(solves_lift_breaks_push_5),
        FakePolicy(),
        TwoTasks(),
        EvalConfig(),
        show=lambda *now: seen.append(now),
    )
    assert seen == [(1, 0), (2, 0), (3, 0), (4, 1), (5, 2), (6, 3)]


def test_a_result_survives_the_way_through_its_file(tmp_path):
    _, result = run(solves_lift_breaks_push_5)
    path = tmp_path / "eval" / "after.json"
    write_result(path, result)
    assert read_result(path) == result
    assert [p.name for p in path.parent.iterdir()] == ["after.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("horizons"), "key 'horizons' is missing"),
        (lambda d: d["episodes"][0].pop("success"), "success"),
        (lambda d: d["episodes"][0].update(success="yes"), "success is 'yes'; expected true or false"),
        (lambda d: d["episodes"][0].update(success=False), "overall says 3 of 5 solved, its episodes say 2 of 5"),
        (lambda d: d["by_task"]["lift"].update(solved=1), "lift says 1 of 3 solved, its episodes say 3 of 3"),
        (lambda d: d["by_task"].pop("push"), "push says None of None solved"),
        (lambda d: d["episodes"].append(d["episodes"][0]), "task 'lift', initial state 7 is there 2 times"),
        (
            lambda d: d["broken"].append({"task": "lift", "initial_state": 7}),
            "task 'lift', initial state 7 is there 2 times",
        ),
        (lambda d: d.update(greedy=False), "greedy is False and temperature None; expected exactly one"),
        (lambda d: d["horizons"].pop("push"), "it has episodes of 'push', which isn't among its tasks"),
    ],
)
def test_a_damaged_result_names_the_file_and_the_fault(tmp_path, change, message):
    _, result = run(solves_lift_breaks_push_5)
    values = result.to_dict()
    change(values)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message) as error:
        read_result(path)
    assert str(path) in str(error.value)


def test_from_dict_is_the_inverse_of_to_dict():
    _, result = run(solves_lift_breaks_push_5)
    assert EvaluationResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
