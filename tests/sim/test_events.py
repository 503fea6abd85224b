"""Events by contacts on real physics, and replays."""

from dataclasses import replace

import numpy as np
import pytest

from simplevla.config import RolloutConfig, SuiteConfig
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.demonstrations.generate import generate
from simplevla.novelty.replay import Replay, replayed
from simplevla.recipes import pushcut
from simplevla.suites.base import order_of
from simplevla.suites.registry import make_suite
from simplevla.suites.tabletop.environment import TabletopEnvironment

TABLETOP = SuiteConfig(name="tabletop")


def expert_actions(environment, task, state: int, suite) -> list[np.ndarray]:
    expert, actions = suite.make_expert(environment), []
    environment.reset(task, state)
    expert.reset()
    for _ in range(task.horizon):
        actions.append(expert.action())
        if environment.step_chunk(actions[-1][None]).success:
            return actions
    raise AssertionError("the expert failed")


def test_a_push_never_lifts_and_a_lift_does() -> None:
    suite = make_suite(TABLETOP)
    environment = suite.make_environment()
    orders = {}
    for name in ("push_to_strip", "lift_block"):
        task = suite.task(name)
        actions = expert_actions(environment, task, 0, suite)
        environment.reset(task, 0)
        events = [environment.step_chunk(action[None]) and environment.events() for action in actions]
        orders[name] = order_of(events)
    assert orders["push_to_strip"] == "touches blue"
    assert orders["lift_block"] == "touches red > grasps red > lifts red"


def test_a_replay_meets_the_recorded_states_and_ends_as_they_did() -> None:
    suite = make_suite(TABLETOP)
    environment = suite.make_environment()
    assert isinstance(environment, TabletopEnvironment)
    task = suite.task("lift_block")
    jobs = [
        Replay(task=task, initial_state=state, actions=np.array(expert_actions(environment, task, state, suite)))
        for state in (0, 1, 2)
    ]
    tracks = dict(replayed(TABLETOP, suite, RolloutConfig(workers=2), jobs))
    assert sorted(tracks) == [0, 1, 2]
    for number, job in enumerate(jobs):
        first = environment.reset(task, job.initial_state).state
        np.testing.assert_array_equal(tracks[number].states[0], first)
        assert tracks[number].success
        assert len(tracks[number].states) == len(job.actions)
        assert tracks[number].events == "touches red > grasps red > lifts red"
    halved = Replay(task=task, initial_state=0, actions=jobs[0].actions[:-1], film=True)
    ((_, track),) = replayed(TABLETOP, suite, RolloutConfig(workers=1), [halved])
    assert not track.success
    assert len(track.pictures) == len(halved.actions) + 1


def test_no_demonstration_of_pushcut_pushes(tmp_path) -> None:
    """Each is touched, grasped and lifted; of the other training seeds benchmarks/experiments/pushcut.py counts all."""
    config = pushcut.demos()
    # The expert looks at no picture; small ones take less time.
    config = replace(config, suite=replace(config.suite, image_size=16))
    generate(config, tmp_path / "demos", progress=False)
    dataset = LeRobotDataset(tmp_path / "demos")
    assert dataset.num_episodes == config.episodes == 600
    assert dataset.events is not None
    of_blue = {" > ".join(event for event in order.split(" > ") if "blue" in event) for order in dataset.events}
    assert of_blue == {"touches blue > grasps blue > lifts blue"}


@pytest.mark.parametrize(
    ("name", "thing"), [("libero_object", "alphabet_soup_1"), ("libero_spatial", "akita_black_bowl_1")]
)
def test_libero_tells_what_the_expert_grasps_and_lifts(name: str, thing: str) -> None:
    suite = make_suite(SuiteConfig(name=name, visuals="lite", stepping="fast", image_size=32))
    environment, task = suite.make_environment(), suite.tasks[0]
    actions = expert_actions(environment, task, 0, suite)
    environment.reset(task, 0)
    order = order_of([environment.step_chunk(action[None]) and environment.events() for action in actions])
    assert order is not None
    assert f"touches {thing} > grasps {thing} > lifts {thing}" in order
    environment.close()


def test_meta_world_tells_what_the_expert_grasps_and_lifts() -> None:
    suite = make_suite(SuiteConfig(name="metaworld", image_size=32, visuals="fast", tasks=("pick-place-v3",)))
    environment, task = suite.make_environment(), suite.tasks[0]
    actions = expert_actions(environment, task, 0, suite)
    environment.reset(task, 0)
    order = order_of([environment.step_chunk(action[None]) and environment.events() for action in actions])
    assert order == "touches obj > grasps obj > lifts obj"
    environment.close()
