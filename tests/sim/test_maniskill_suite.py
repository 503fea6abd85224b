"""Real ManiSkill: its own physics and pixels, both visual modes, goals in the picture, experts, events, bad input."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mani_skill", reason="needs the extra 'maniskill' (docs/tests.md)")

import gymnasium

from simplevla.config import SuiteConfig
from simplevla.errors import UserError
from simplevla.suites.base import Suite, order_of
from simplevla.suites.checker import check_suite
from simplevla.suites.maniskill import catalog
from simplevla.suites.maniskill.environment import ManiskillEnvironment
from simplevla.suites.maniskill.simulation import IN_REGION, render_device, rotation_vector
from simplevla.suites.registry import make_suite

try:
    render_device()
except UserError as error:
    pytest.skip(f"{error} (docs/tests.md)", allow_module_level=True)

ACTIONS = np.random.default_rng(0).uniform(-1, 1, (12, 7)).astype(np.float32)
Made = tuple[Suite, ManiskillEnvironment]


@pytest.fixture(scope="module")
def lite() -> Iterator[Made]:
    suite = make_suite(SuiteConfig(name="maniskill", visuals="lite", image_size=64))
    environment = suite.make_environment()
    assert isinstance(environment, ManiskillEnvironment)
    yield suite, environment
    environment.close()


@pytest.mark.parametrize("size", [1.0, 2.0])
def test_physics_is_the_benchmarks_under_its_own_controller(size: float, lite: Made) -> None:
    suite, environment = lite
    made = gymnasium.make(
        "StackCube-v1", obs_mode="none", control_mode="pd_ee_delta_pose", sim_backend="physx_cpu", render_backend="none"
    )
    own = made.unwrapped
    own.robot_uids = "panda"
    own.reset(seed=7)
    environment.reset(suite.task("StackCube-v1"), 7)
    assert environment.simulation is not None
    ours = environment.simulation.env
    assert np.array_equal(ours.get_state(), own.get_state())
    for action in size * ACTIONS:
        own.step(action)
        environment.simulation.step(action)
        np.testing.assert_allclose(ours.get_state(), own.get_state(), atol=2e-5)
    made.close()


@pytest.mark.parametrize("name", IN_REGION)
def test_success_is_the_benchmarks_at_every_env_step(name: str, lite: Made) -> None:
    suite, environment = lite
    expert = suite.make_expert(environment)
    environment.reset(suite.task(name), 102)
    assert expert is not None
    assert environment.simulation is not None
    expert.reset()
    for _ in range(suite.task(name).horizon):
        solved = environment.simulation.step(expert.action())
        assert solved == bool(type(environment.simulation.env).evaluate(environment.simulation.env)["success"])
        if solved:
            break
    assert solved


def test_lite_changes_pixels_and_no_physics(lite: Made) -> None:
    suite, environment = lite
    task = suite.task("StackCube-v1")
    full = make_suite(SuiteConfig(name="maniskill", image_size=64)).make_environment()
    seen = []
    for made in (environment, full):
        assert isinstance(made, ManiskillEnvironment)
        made.reset(task, 3)
        result = made.step_chunk(ACTIONS)
        seen.append(result.observation)
        assert made.simulation is not None
        seen.append(made.simulation.env.get_state().numpy())
    light, light_state, whole, whole_state = seen
    assert np.array_equal(light_state, whole_state)
    assert np.array_equal(light.state, whole.state)
    for camera in ("fixed", "wrist"):
        apart = np.abs(light.images[camera].astype(int) - whole.images[camera])
        assert 0 < apart.mean() < 4, camera
    full.close()


@pytest.mark.parametrize("name", catalog.INSTRUCTIONS)
def test_the_expert_solves_held_out_states_within_the_horizon(name: str, lite: Made) -> None:
    suite, environment = lite
    task, expert = suite.task(name), suite.make_expert(environment)
    assert expert is not None
    events = []
    for state in (100, 101):
        environment.reset(task, state)
        assert environment.simulation is not None
        expert.reset()
        for _ in range(task.horizon):
            events.append(environment.events())
            if environment.simulation.step(expert.action()):
                break
        else:
            pytest.fail(f"{name} {state}: not solved in {task.horizon} env steps")
    if name == "PickCube-v1":
        assert order_of(events) == "touches cube > grasps cube > lifts cube"


def test_the_goal_that_no_object_shows_is_drawn(lite: Made) -> None:
    suite, environment = lite
    pictures = []
    for visible in (True, False):
        environment.reset(suite.task("PickCube-v1"), 5)
        scene = environment.simulation
        assert scene is not None
        if not visible:
            scene.env.goal_site.hide_visual()
        scene.update_pictures()
        pictures.append(scene.picture("base_camera").astype(int))
        scene.env.goal_site.show_visual()
    green = pictures[0] - pictures[1]
    assert (green[..., 1] > 40).sum() >= 4


def test_the_suite_keeps_the_contract_in_an_interpreter_of_its_own() -> None:
    tasks = ("PushCube-v1", "PlaceSphere-v1")
    suite = make_suite(SuiteConfig(name="maniskill", visuals="lite", image_size=64, tasks=tasks, python=sys.executable))
    assert check_suite(suite, states_per_task=1) == []


def test_rotation_vectors() -> None:
    angle = 0.7
    turned = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    np.testing.assert_allclose(rotation_vector(turned), [0, 0, angle], atol=1e-12)
    np.testing.assert_allclose(rotation_vector(np.eye(3)), 0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"visuals": "fast"}, "'fast'; ManiSkill has the visual modes stock and lite"),
        ({"stepping": "fast"}, "no choice of stepping, leave it out"),
        ({"horizon_protocol": "long"}, "'long'; ManiSkill has the horizon protocol maniskill"),
        ({"image_size": 8}, "suite.image_size is 8; expected at least 16"),
    ],
)
def test_bad_settings_are_refused(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_suite(SuiteConfig(name="maniskill", **options))


def test_bad_actions_and_states_are_refused(lite: Made) -> None:
    suite, environment = lite
    task = suite.task("PushCube-v1")
    with pytest.raises(UserError, match=r"initial state 150 .* has 0 to 149"):
        environment.reset(task, 150)
    environment.reset(task, 0)
    with pytest.raises(UserError, match=r"shape \(1, 4\); ManiSkill expects \[h, 7\]"):
        environment.step_chunk(np.zeros((1, 4), np.float32))
    with pytest.raises(UserError, match="NaN or infinity"):
        environment.step_chunk(np.full((1, 7), np.nan, np.float32))


def test_a_missing_vulkan_driver_is_one_error_before_anything_starts(tmp_path: Path) -> None:
    command = ["demos", "--suite.name", "maniskill", "--episodes", "2", "--out", str(tmp_path / "data")]
    environment = {**os.environ, "VK_DRIVER_FILES": "/nowhere.json", "VK_ICD_FILENAMES": "/nowhere.json"}
    done = subprocess.run(
        [sys.executable, "-m", "simplevla.cli", *command], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "ManiSkill's pictures need a Vulkan driver" in line
    assert not list(tmp_path.iterdir())
