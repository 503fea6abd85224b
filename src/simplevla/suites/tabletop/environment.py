"""The tabletop environment: physics, observation, success."""

import atexit
from collections.abc import Callable
from functools import cache
from pathlib import Path

import mujoco
import numpy as np

from simplevla.errors import UserError
from simplevla.suites.base import Environment
from simplevla.suites.contacts import Contacts
from simplevla.suites.tabletop.layout import BLOCK_HALF, BLOCKS, Layout, sample_layout
from simplevla.types import ChunkResult, Observation, Task

SUBSTEPS = 20
"""Physics substeps of 5 ms per env step: 10 Hz control."""
MAX_DELTA_M = 0.03
"""Distance by which an action of 1 moves the hand's target from its measured position, along one axis."""
FINGER_OPEN_M = 0.05
FINGERS = ("left", "right")


AT_REST_M_S = 0.05
"""Speed up to which a block lies; the hand moves at 0.3 m/s."""
LIGHT_KG, HEAVY_KG = 0.4, 1.6
"""Masses of the weighted blue block: fingers lift 0.4 kg with ease, 1 kg in a third of the tries and 1.2 kg never."""
SMOOTH, BARE = 0.2, 1.0
"""Friction of table and fingers where the blue block is weighted."""


def is_heavy(initial_state: int) -> bool:
    """True for two thirds of the initial states, at random; nothing shows it."""
    return bool(np.random.default_rng(initial_state).random() < 2 / 3)


@cache
def shared_model(blue_kg: float | None = None) -> mujoco.MjModel:
    """One model per process and mass of the weighted blue block: environments differ only in their data."""
    model = mujoco.MjModel.from_xml_path(str(Path(__file__).with_name("scene.xml")))
    if blue_kg is not None:
        blue = model.body("blue")
        blue.inertia *= blue_kg / blue.mass
        blue.mass = blue_kg
        for geom in ("blue", "table"):
            model.geom(geom).friction[0] = SMOOTH
        for finger in FINGERS:
            model.geom(finger).friction[0] = BARE
        # Else contacts are as soft as those of the scene's block of 80 g, and throw it.
        mujoco.mj_setConst(model, mujoco.MjData(model))
    return model


renderers: dict[int, mujoco.Renderer] = {}
"""One rendering context per process and image size."""


def shared_renderer(size: int) -> mujoco.Renderer:
    """The process's renderer of square images with this side."""
    if size not in renderers:
        renderer = renderers[size] = mujoco.Renderer(shared_model(), size, size)
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        atexit.register(close_renderers)
    return renderers[size]


def close_renderers() -> None:
    """Frees the contexts while their display is there; at the interpreter's end it is too late, and they complain."""
    while renderers:
        renderers.popitem()[1].close()


class TabletopEnvironment(Environment):
    """A position-controlled gripper with 3 translations over a table.

    Action float32 [4] in [-1, 1]: hand target = measured hand position + 3 cm x action[:3] (world frame, so the task is
    Markov in the observation); action[3] > 0 closes the gripper, else opens it.
    """

    def __init__(self, image_size: int, weighted: bool = False) -> None:
        self.weighted = weighted
        self.model = shared_model(LIGHT_KG if weighted else None)
        self.data = mujoco.MjData(self.model)
        self.image_size = image_size
        self._task = ""
        model = self.model
        self._contacts = Contacts(model, self.data, (("left",), ("right",)))
        self._joint = {model.joint(i).name: int(model.jnt_qposadr[i]) for i in range(model.njnt)}
        self._mocap = {
            model.body(i).name: int(model.body_mocapid[i]) for i in range(model.nbody) if model.body_mocapid[i] >= 0
        }
        self._fingers = {model.geom(name).id for name in FINGERS}
        self._block_geom = {name: model.geom(name).id for name in BLOCKS}

    def reset(self, task: Task, initial_state: int) -> Observation:
        self.reset_unseen(task, initial_state)
        return self._observe()

    def reset_unseen(self, task: Task, initial_state: int) -> None:
        self._task = task.name
        if task.name not in SUCCESS:
            raise UserError(f"tabletop has no task {task.name!r}; it has: {', '.join(SUCCESS)}")
        if self.weighted:
            self.model = shared_model(HEAVY_KG if is_heavy(initial_state) else LIGHT_KG)
        self._place(sample_layout((list(SUCCESS).index(task.name), initial_state)))

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        executed, success = 0, False
        for action in actions:
            self._step(action)
            executed += 1
            success = self.success()
            if success:
                break
        return ChunkResult(observation=self._observe, executed=executed, success=success)

    def render(self) -> np.ndarray:
        return self._image("fixed", 256)

    def watch(self) -> None:
        self._contacts.watched = True

    def events(self) -> tuple[str, ...]:
        return self._contacts.events()

    def success(self) -> bool:
        """True if the current task is solved in the current state."""
        return SUCCESS[self._task](self)

    def hand(self) -> np.ndarray:
        """Measured position between the finger tips, m, float64 [3]."""
        adr = self._joint["hand_x"]
        return self.data.qpos[adr : adr + 3].copy()

    def block(self, name: str) -> np.ndarray:
        """Centre of a block, m, float64 [3]."""
        adr = self._joint[name]
        return self.data.qpos[adr : adr + 3].copy()

    def joint(self, name: str) -> float:
        """Position of a slide joint, m."""
        return float(self.data.qpos[self._joint[name]])

    def fixture(self, name: str) -> np.ndarray:
        """Position of plate, button or rail, m, float64 [3]."""
        return self.data.mocap_pos[self._mocap[name]].copy()

    def opening(self) -> float:
        """Distance between the fingers' inner faces, m."""
        return self.joint("left") + self.joint("right")

    def finger_contacts(self, block: str) -> int:
        """Number of fingers that touch the block: 0, 1 or 2."""
        geom, touching = self._block_geom[block], set()
        for a, b in self.data.contact.geom:
            if a == geom and b in self._fingers:
                touching.add(int(b))
            elif b == geom and a in self._fingers:
                touching.add(int(a))
        return len(touching)

    def _place(self, layout: Layout) -> None:
        model, data = self.model, self.data
        mujoco.mj_resetData(model, data)
        for name, index in self._mocap.items():
            data.mocap_pos[index, :2] = layout.positions[name]
        for name in BLOCKS:
            adr, yaw = self._joint[name], layout.yaws[name]
            data.qpos[adr : adr + 7] = (*layout.positions[name], BLOCK_HALF, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2))
        adr = self._joint["hand_x"]
        data.qpos[adr : adr + 3] = layout.hand
        data.qpos[self._joint["left"]] = data.qpos[self._joint["right"]] = FINGER_OPEN_M
        data.ctrl[:3] = layout.hand
        data.ctrl[3:] = FINGER_OPEN_M
        mujoco.mj_step(model, data, nstep=SUBSTEPS)
        self._contacts.begin()

    def _step(self, action: np.ndarray) -> None:
        action = np.clip(action, -1.0, 1.0)
        self.data.ctrl[:3] = self.hand() + MAX_DELTA_M * action[:3]
        self.data.ctrl[3:] = 0.0 if action[3] > 0 else FINGER_OPEN_M
        if not self._contacts.watched:
            mujoco.mj_step(self.model, self.data, nstep=SUBSTEPS)
            return
        for _ in range(SUBSTEPS):
            mujoco.mj_step(self.model, self.data)
            self._contacts.look()

    def _image(self, camera: str, size: int) -> np.ndarray:
        renderer = shared_renderer(size)
        renderer.update_scene(self.data, camera)
        return renderer.render()

    def _observe(self) -> Observation:
        images = {camera: self._image(camera, self.image_size) for camera in ("fixed", "wrist")}
        state = np.array([*self.hand(), self.opening()], dtype=np.float32)
        return Observation(images=images, state=state)


def _pressed(env: TabletopEnvironment) -> bool:
    return env.joint("cap") < -0.008


def _lid_open(env: TabletopEnvironment) -> bool:
    return env.joint("lid") > 0.065


def _blue_on_strip(env: TabletopEnvironment) -> bool:
    block = env.block("blue")
    return bool(block[0] > 0.13 and block[2] < 0.035)


def _blue_lies_on_strip(env: TabletopEnvironment) -> bool:
    x, y, z = env.block("blue")
    half_x, half_y, _ = env.model.geom("strip").size
    at_x, at_y, _ = env.model.geom("strip").pos
    inside = abs(x - at_x) < half_x and abs(y - at_y) < half_y and z < 0.035
    return bool(inside and np.linalg.norm(env.data.joint("blue").qvel[:3]) < AT_REST_M_S)


def _red_lifted(env: TabletopEnvironment) -> bool:
    return bool(env.block("red")[2] > 0.1)


def _blue_on_plate(env: TabletopEnvironment) -> bool:
    block = env.block("blue")
    near = np.linalg.norm(block[:2] - env.fixture("plate")[:2]) < 0.045
    return bool(near and block[2] < 0.037) and env.finger_contacts("blue") == 0


def _red_on_blue(env: TabletopEnvironment) -> bool:
    offset = env.block("red") - env.block("blue")
    over = np.linalg.norm(offset[:2]) < 0.03 and abs(offset[2] - 2 * BLOCK_HALF) < 0.006
    return bool(over) and env.finger_contacts("red") == 0


SUCCESS: dict[str, Callable[[TabletopEnvironment], bool]] = {
    "press_button": _pressed,
    "slide_lid": _lid_open,
    "push_to_strip": _blue_on_strip,
    "lift_block": _red_lifted,
    "place_on_plate": _blue_on_plate,
    "stack_blocks": _red_on_blue,
    "carry_to_strip": _blue_lies_on_strip,
}
"""Task -> predicate on the state; it doesn't care how the task was solved."""
