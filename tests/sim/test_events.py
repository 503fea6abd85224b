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
from simplevla.suites.tabletop.environment import AT_REST_M_S, MAX_DELTA_M, TabletopEnvironment, is_heavy, shared_model
from simplevla.suites.tabletop.expert import TabletopExpert

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


@pytest.mark.parametrize(
    ("suite", "name", "order"),
    [
        (TABLETOP, "press_button", "touches cap"),
        (TABLETOP, "slide_lid", "touches lid"),
        (SuiteConfig(name="metaworld", image_size=32, visuals="fast"), "drawer-open-v3", "touches drawer_link"),
        # Its body has no name.
        (SuiteConfig(name="metaworld", image_size=32, visuals="fast"), "dial-turn-v3", "touches knob_Joint_1"),
    ],
)
def test_what_hangs_on_a_joint_is_touched(suite: SuiteConfig, name: str, order: str) -> None:
    made = make_suite(replace(suite, tasks=(name,)))
    environment, (task,) = made.make_environment(), made.tasks
    actions = expert_actions(environment, task, 0, made)
    environment.reset(task, 0)
    assert order_of([environment.step_chunk(action[None]) and environment.events() for action in actions]) == order
    environment.close()


def test_a_push_with_closed_fingers_is_no_grasp_and_throws_nothing() -> None:
    """The fingers lie side by side, so that both touch the face that they push."""
    suite = make_suite(SuiteConfig(name="tabletop_pushcut", image_size=16))
    environment = suite.make_environment()
    assert isinstance(environment, TabletopEnvironment)
    (task,), expert = suite.tasks, TabletopExpert(environment)
    environment.watch()
    on_strip, touched, heights, speeds = 0, 0, [], []
    dof = environment.model.joint("blue").dofadr[0]
    for state in suite.initial_states(task, "test")[:30]:
        environment.reset_unseen(task, state)
        for _ in range(task.horizon):
            target, close = expert._push_to_strip()
            move = np.clip((target - environment.hand()) / MAX_DELTA_M, -1, 1)
            environment.step_chunk(np.array([[*move, close]], np.float32))
            # The block slides ahead of the hand, so nothing touches it at the end of an env step.
            assert environment.finger_contacts("blue") == 0
            events = environment.events()
            assert "grasps blue" not in events
            touched += "touches blue" in events
            heights.append(environment.block("blue")[2])
            speeds.append(np.linalg.norm(environment.data.qvel[dof : dof + 3]))
            x, y, _ = environment.block("blue")
            if abs(x - 0.155) < 0.035 and abs(y + 0.06) < 0.1:
                on_strip += 1
                # It still moves, and so doesn't lie.
                assert speeds[-1] > AT_REST_M_S
                assert not environment.success()
                break
    assert on_strip >= 25
    assert touched > 60
    # A block of 5 cm that tips over its edge rises to 3.6 cm.
    assert max(heights) < 0.04
    # The hand moves at 0.3 m/s.
    assert max(speeds) < 1.0


def test_two_thirds_of_pushcut_s_blocks_are_too_heavy_to_be_carried() -> None:
    suite = make_suite(SuiteConfig(name="tabletop_pushcut", image_size=16))
    environment, (task,) = suite.make_environment(), suite.tasks
    expert = suite.make_expert(environment)
    states = suite.initial_states(task, "test")
    assert 0.57 < np.mean([is_heavy(state) for state in states]) < 0.77
    carried = {False: 0, True: 0}
    for state in states[:40]:
        environment.reset_unseen(task, state)
        carried[is_heavy(state)] += any(
            environment.step_chunk(expert.action()[None]).success for _ in range(task.horizon)
        )
    assert carried[True] == 0
    assert carried[False] >= 0.8 * sum(not is_heavy(state) for state in states[:40])


@pytest.mark.parametrize("kg", [0.4, 1.6])
def test_contacts_of_a_weighted_block_are_as_stiff_as_its_mass_asks(kg: float) -> None:
    blue = shared_model(kg).body("blue")
    assert blue.mass == pytest.approx(kg)
    assert blue.invweight0[0] == pytest.approx(1 / kg)


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


def test_fingers_that_close_on_nothing_touch_nothing() -> None:
    suite = make_suite(SuiteConfig(name="libero_object", visuals="lite", stepping="fast", image_size=32))
    environment = suite.make_environment()
    environment.reset(suite.tasks[0], 0)
    close = np.array([[0, 0, 0, 0, 0, 0, 1]], np.float32)
    assert order_of([environment.step_chunk(close) and environment.events() for _ in range(40)]) == "nothing"
    environment.close()


@pytest.mark.parametrize("name", ["hammer-v3", "hand-insert-v3", "box-close-v3", "sweep-v3"])
def test_what_moves_by_itself_at_the_start_is_not_lifted(name: str) -> None:
    """These things begin in the air or inside of something, and come to rest after the first env steps."""
    suite = make_suite(SuiteConfig(name="metaworld", image_size=32, visuals="fast", tasks=(name,)))
    environment, task = suite.make_environment(), suite.tasks[0]
    environment.reset(task, 0)
    still = np.zeros((1, 4), np.float32)
    assert order_of([environment.step_chunk(still) and environment.events() for _ in range(60)]) == "nothing"
    environment.close()


def test_meta_world_tells_what_the_expert_grasps_and_lifts() -> None:
    suite = make_suite(SuiteConfig(name="metaworld", image_size=32, visuals="fast", tasks=("pick-place-v3",)))
    environment, task = suite.make_environment(), suite.tasks[0]
    actions = expert_actions(environment, task, 0, suite)
    environment.reset(task, 0)
    order = order_of([environment.step_chunk(action[None]) and environment.events() for action in actions])
    assert order == "touches obj > grasps obj > lifts obj"
    environment.close()
