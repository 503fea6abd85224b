"""Real Meta-World: its own pixels and physics, visual modes, goals in the picture, reset, experts."""

from collections.abc import Iterator

import mujoco
import numpy as np
import pytest

pytest.importorskip("metaworld", reason="needs the extra 'metaworld'")

from metaworld.env_dict import ALL_V3_ENVIRONMENTS

from simplevla.config import DemosConfig, SuiteConfig
from simplevla.demonstrations.expert import Attempt
from simplevla.suites.base import Suite
from simplevla.suites.checker import check_suite
from simplevla.suites.metaworld import catalog
from simplevla.suites.metaworld.camera import CAMERAS, Renderer
from simplevla.suites.metaworld.environment import MetaworldEnvironment
from simplevla.suites.registry import make_suite

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (16, 4)).astype(np.float32)
MARKED = (
    "reach-v3",
    "reach-wall-v3",
    "push-v3",
    "push-back-v3",
    "push-wall-v3",
    "pick-place-v3",
    "pick-place-wall-v3",
    "pick-out-of-hole-v3",
    "coffee-pull-v3",
    "stick-push-v3",
    "stick-pull-v3",
    "plate-slide-back-v3",
    "plate-slide-back-side-v3",
    "hand-insert-v3",
    "sweep-into-v3",
)
"""Tasks whose instruction names a marker or a hole: nothing but the marker shows where the goal is."""


@pytest.fixture(scope="module")
def lite() -> Iterator[tuple[Suite, MetaworldEnvironment]]:
    suite = make_suite(SuiteConfig(name="metaworld", visuals="lite"))
    environment = suite.make_environment()
    assert isinstance(environment, MetaworldEnvironment)
    yield suite, environment
    environment.close()


def test_the_tasks_are_the_benchmarks_in_its_order(lite: tuple[Suite, MetaworldEnvironment]) -> None:
    suite, _ = lite
    assert [task.name for task in suite.tasks] == list(ALL_V3_ENVIRONMENTS)
    assert {task.horizon for task in suite.tasks} == {200}
    assert {env.max_path_length for env in ALL_V3_ENVIRONMENTS.values()} == {catalog.HORIZONS["metaworld"][0]}


def test_stock_equals_the_benchmark_in_pixels_and_physics() -> None:
    suite = make_suite(SuiteConfig(name="metaworld", visuals="stock", image_size=64))
    environment = suite.make_environment()
    assert isinstance(environment, MetaworldEnvironment)
    environment.reset(suite.task("drawer-open-v3"), 3)
    assert environment.simulation is not None
    layout = environment.simulation._layouts[3]
    result = environment.step_chunk(ACTIONS)
    assert (result.executed, result.success) == (16, False)

    own = ALL_V3_ENVIRONMENTS["drawer-open-v3"](render_mode="rgb_array", camera_name="corner4", width=64, height=64)
    own._set_task_called, own._freeze_rand_vec, own._last_rand_vec = True, True, layout
    own.reset()
    for action in ACTIONS:
        observation, *_ = own.step(action)
    np.testing.assert_array_equal(environment.simulation.data.qpos, own.data.qpos)
    np.testing.assert_array_equal(environment.simulation.data.qvel, own.data.qvel)
    np.testing.assert_array_equal(result.observation.state, observation[:4].astype(np.float32))
    turned = own.render()[::-1, ::-1]
    assert np.abs(result.observation.images["fixed"].astype(int) - turned).mean() < 0.05
    own.close()
    environment.close()


def test_layouts_follow_from_seeds_as_in_the_benchmark(lite: tuple[Suite, MetaworldEnvironment]) -> None:
    suite, environment = lite
    own = ALL_V3_ENVIRONMENTS["window-open-v3"]()
    own._set_task_called, own.seeded_rand_vec, own._freeze_rand_vec = True, True, False
    seen = []
    for state in (0, 7, 120):
        simulation = environment.place(suite.task("window-open-v3"), state)
        own.seed(state)
        own.reset_model()
        np.testing.assert_array_equal(simulation.model.body("window").pos, own._last_rand_vec)
        seen.append(tuple(own._last_rand_vec))
    assert len(set(seen)) == 3


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("lift", [0.0, 0.06])
def test_images_are_upright_and_show_the_goal(
    lite: tuple[Suite, MetaworldEnvironment], camera: str, lift: float
) -> None:
    """What changes in the picture when the goal marker disappears lies where the camera's geometry puts the goal; in the
    fixed view a raised marker is further up. A mirrored or upside-down picture fails."""
    suite, environment = lite
    environment.place(suite.task("push-v3"), 3)
    simulation = environment.simulation
    assert simulation is not None
    model, data = simulation.model, simulation.data
    site, goal = model.site("goal"), simulation.full_state[-3:].copy()
    np.testing.assert_allclose(data.site("goal").xpos, goal, atol=1e-6)
    goal[2] += lift
    site.pos = goal
    site.rgba = [0, 0.8, 0, 1]
    mujoco.mj_kinematics(model, data)
    before = environment._observe().images[camera]
    assert (before.shape, before.dtype) == ((128, 128, 3), np.uint8)
    site.rgba[3] = 0
    after = environment._observe().images[camera]
    site.rgba[3] = 1
    rows, columns = np.nonzero(np.abs(before.astype(int) - after).sum(2) > 60)
    assert len(rows) >= 6

    view = data.camera(CAMERAS[camera])
    local = view.xmat.reshape(3, 3).T @ (goal - view.xpos)
    focal = 64 / np.tan(np.deg2rad(model.camera(CAMERAS[camera]).fovy[0]) / 2)
    right, up = local[0] / -local[2] * focal, local[1] / -local[2] * focal
    if camera == "fixed":
        right, up = -right, -up
        assert view.xmat.reshape(3, 3)[2, 1] < 0, "this camera is mounted upside down"
    assert rows.mean() == pytest.approx(64 - up, abs=2)
    assert columns.mean() == pytest.approx(64 + right, abs=2)


def test_markers_stand_at_the_goal(lite: tuple[Suite, MetaworldEnvironment]) -> None:
    suite, environment = lite
    for name in MARKED:
        simulation = environment.place(suite.task(name), 5)
        simulation.step(ACTIONS[0])
        model, data = simulation.model, simulation.data
        drawn = [i for i in range(model.nsite) if model.site_group[i] < 3 and model.site_rgba[i, 3] == 1]
        distance = np.linalg.norm(data.site_xpos[drawn] - simulation.env._target_pos, axis=1)
        assert distance.min() < 1e-6, name


def test_the_state_knows_nothing_of_objects_and_goals(lite: tuple[Suite, MetaworldEnvironment]) -> None:
    suite, environment = lite
    task = suite.task("push-v3")
    one, two = environment.reset(task, 0), environment.reset(task, 1)
    np.testing.assert_array_equal(one.state, two.state)
    assert one.state.shape == (len(suite.spec.state_names),) == (4,)
    for camera in CAMERAS:
        assert not np.array_equal(one.images[camera], two.images[camera])


def test_visual_modes_share_the_physics_and_differ_in_pixels() -> None:
    seen = {}
    for visuals in ("stock", "fast", "lite"):
        suite = make_suite(SuiteConfig(name="metaworld", visuals=visuals, image_size=64))
        environment = suite.make_environment()
        assert isinstance(environment, MetaworldEnvironment)
        environment.reset(suite.task("drawer-open-v3"), 0)
        observation = environment.step_chunk(ACTIONS).observation
        assert environment.simulation is not None
        seen[visuals] = observation.images["fixed"].astype(int), environment.simulation.data.qpos.copy()
        assert suite.protocol["visuals"] == visuals
        environment.close()
        assert environment._simulations._renderer is None, "the last environment frees it"
    for visuals in ("fast", "lite"):
        np.testing.assert_array_equal(seen[visuals][1], seen["stock"][1])
        difference = np.abs(seen[visuals][0] - seen["stock"][0])
        assert 0.5 < difference.mean() < 12
    assert np.abs(seen["fast"][0] - seen["lite"][0]).mean() > 0.5


def test_a_reset_gives_the_same_scene_whatever_came_before(lite: tuple[Suite, MetaworldEnvironment]) -> None:
    suite, environment = lite
    close, lever = suite.task("drawer-close-v3"), suite.task("lever-pull-v3")
    first = environment.reset(close, 3)
    first_end = environment.step_chunk(ACTIONS).observation
    scene = environment.simulation
    assert scene is not None
    first_position = scene.data.qpos.copy()
    expert = suite.make_expert(environment)
    assert expert is not None
    expert.reset()
    assert any(scene.step(expert.action()) for _ in range(200))
    environment.reset(lever, 3)
    assert environment.simulation is not scene
    environment.step_chunk(ACTIONS)
    environment.reset(close, 4)
    assert environment.simulation is scene, "a scene given back is used again"
    environment.step_chunk(ACTIONS)
    again = environment.reset(close, 3)
    again_end = environment.step_chunk(ACTIONS).observation
    np.testing.assert_array_equal(first_position, scene.data.qpos)
    for one, two in ((first, again), (first_end, again_end)):
        np.testing.assert_array_equal(one.state, two.state)
        for camera in CAMERAS:
            np.testing.assert_array_equal(one.images[camera], two.images[camera])


def test_environments_of_one_process_do_not_disturb_each_other(lite: tuple[Suite, MetaworldEnvironment]) -> None:
    suite, environment = lite
    task = suite.task("door-close-v3")
    environment.reset(task, 1)
    alone = environment.step_chunk(ACTIONS).observation
    environment.reset(task, 1)
    other = suite.make_environment()
    assert isinstance(other, MetaworldEnvironment)
    other.reset(task, 2)
    assert other.simulation is not environment.simulation
    for action in ACTIONS:
        result = environment.step_chunk(action[None])
        other.step_chunk(-action[None])
        assert other._observe().images["fixed"].any()
    for camera in CAMERAS:
        np.testing.assert_array_equal(result.observation.images[camera], alone.images[camera])
    renderer = environment._simulations.renderer
    other.close()
    assert environment._simulations.renderer is renderer, "it stays while an environment is left"


def test_only_what_is_looked_at_is_rendered(
    lite: tuple[Suite, MetaworldEnvironment], monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, environment = lite
    environment.reset(suite.task("reach-v3"), 0)
    drawn = []
    original = Renderer.picture
    monkeypatch.setattr(
        Renderer, "picture", lambda self, *arguments: (drawn.append(arguments[1]), original(self, *arguments))[1]
    )
    result = environment.step_chunk(ACTIONS)
    assert drawn == []
    assert result.observation is result.observation
    assert drawn == list(CAMERAS.values())


def test_actions_move_hand_and_fingers(lite: tuple[Suite, MetaworldEnvironment]) -> None:
    suite, environment = lite
    start = environment.reset(suite.task("reach-v3"), 0).state
    forward = environment.step_chunk(np.tile(np.float32([0, 1, 0, -1]), (10, 1))).observation.state
    assert 0.03 < forward[1] - start[1] < 0.1
    np.testing.assert_allclose(forward[[0, 2]], start[[0, 2]], atol=0.01)
    closed = environment.step_chunk(np.tile(np.float32([0, 0, 0, 1]), (20, 1))).observation.state
    assert start[3] > 0.9 > 0.6 > closed[3]


def test_the_checker_finds_nothing(lite: tuple[Suite, MetaworldEnvironment]) -> None:
    """Includes: the expert solves the task, and its actions in one chunk stop where it is solved."""
    names = ("button-press-topdown-v3", "handle-press-v3", "pick-place-v3")
    assert check_suite(make_suite(SuiteConfig(name="metaworld", tasks=names, visuals="lite")), 3) == []


@pytest.mark.parametrize("task", ["coffee-button-v3", "assembly-v3", "peg-unplug-side-v3", "plate-slide-back-side-v3"])
def test_experts_solve_held_out_layouts(lite: tuple[Suite, MetaworldEnvironment], task: str) -> None:
    suite, environment = lite
    expert = suite.make_expert(environment)
    assert expert is not None
    simulation = environment.place(suite.task(task), 110)
    expert.reset()
    assert any(simulation.step(expert.action()) for _ in range(200))


def test_a_demonstration_with_noise() -> None:
    config = DemosConfig(
        suite=SuiteConfig(name="metaworld", tasks=("reach-v3",), visuals="lite", image_size=32),
        noise=0.5,
        noise_probability=0.1,
    )
    suite = make_suite(config.suite)
    environment = suite.make_environment()
    beats: list[None] = []
    attempt = Attempt(config=config, episode=0, number=0, task=suite.tasks[0], initial_state=2)
    episode = attempt.run(suite, environment, lambda: beats.append(None))
    assert episode is not None
    assert len(beats) == len(episode.actions)
    assert 20 < len(episode.actions) < 150
    assert np.abs(episode.actions).max() == 1, "the expert commands more than the arm can do"
    assert len(episode.images["wrist"]) == len(episode.actions) == len(episode.state)
    environment.close()


def test_wrong_calls_are_refused(lite: tuple[Suite, MetaworldEnvironment]) -> None:
    suite, environment = lite
    with pytest.raises(ValueError, match=r"initial state 150 .* Meta-World has 0 to 149"):
        environment.reset(suite.tasks[0], 150)
    environment.reset(suite.task("reach-v3"), 0)
    with pytest.raises(ValueError, match=r"shape \(8, 7\); Meta-World expects \[h, 4\]"):
        environment.step_chunk(np.zeros((8, 7), np.float32))
    with pytest.raises(ValueError, match="NaN or infinity"):
        environment.step_chunk(np.full((1, 4), np.nan, np.float32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"visuals": "pretty"}, "'pretty'; Meta-World has the visual modes fast, stock and lite"),
        ({"image_size": 8}, "suite.image_size is 8; expected at least 16"),
        ({"stepping": "fast"}, "no choice of stepping, leave it out"),
        ({"sentences": "bddl"}, "no choice of sentences, leave it out"),
        ({"tasks": ("reach",)}, "has no task 'reach'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_suite(SuiteConfig(name="metaworld", **settings))
