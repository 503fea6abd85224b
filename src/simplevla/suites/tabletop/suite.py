"""The tabletop suites: six language-conditioned tasks of different kinds in one scene, and one that is carried."""

import os
import sys

from simplevla.config import SuiteConfig
from simplevla.suites.base import Environment, Expert, Suite, SuiteSpec
from simplevla.suites.offscreen import renderer_name
from simplevla.suites.settings import refuse, split_seeds
from simplevla.types import Split, Task

if sys.platform.startswith("linux"):
    os.environ.setdefault("MUJOCO_GL", "egl")

INSTRUCTIONS = {
    "press_button": ("press the yellow button", 16),
    "slide_lid": ("slide the orange lid open", 20),
    "push_to_strip": ("push the blue block onto the purple strip", 20),
    "lift_block": ("lift the red block", 18),
    "place_on_plate": ("put the blue block on the white plate", 28),
    "stack_blocks": ("stack the red block on the blue block", 30),
}
"""Task -> (instruction, horizon in env steps)."""
TRAIN_STATES, TEST_STATES = 200, 50
HORIZON_REASON = "about 1.7 times the scripted expert's mean: time for a detour, not for a second try"

PUSHCUT = "tabletop_pushcut"
PUSHCUT_TASK = Task(
    name="carry_to_strip",
    instruction="move the blue block onto the purple strip",
    horizon=20,
    horizon_reason="about 1.2 times the scripted expert's mean: time for one grasp, seldom for a second",
)
PUSHCUT_TEST_STATES = 200
"""More held-out states than elsewhere, since there is one task."""


class TabletopSuite(Suite):
    """All tasks share the scene, so only the instruction says what is to be done."""

    def __init__(self, image_size: int, name: str = "tabletop") -> None:
        self.image_size, self.name = image_size, name
        self.test_states = PUSHCUT_TEST_STATES if name == PUSHCUT else TEST_STATES
        self.spec = SuiteSpec(
            cameras={"fixed": (image_size, image_size), "wrist": (image_size, image_size)},
            state_names=("hand_x_m", "hand_y_m", "hand_z_m", "gripper_opening_m"),
            action_names=("delta_x_3cm", "delta_y_3cm", "delta_z_3cm", "gripper_close"),
            action_low=(-1.0,) * 4,
            action_high=(1.0,) * 4,
            control_hz=10.0,
        )
        self.tasks = tuple(
            Task(name=task, instruction=instruction, horizon=horizon, horizon_reason=HORIZON_REASON)
            for task, (instruction, horizon) in INSTRUCTIONS.items()
        )
        if name == PUSHCUT:
            self.tasks = (PUSHCUT_TASK,)

    @property
    def protocol(self) -> dict[str, str | int | float]:
        import mujoco

        return {
            "image_size": self.image_size,
            "renderer": os.environ.get("MUJOCO_GL", "default"),
            "mujoco": mujoco.__version__,
            "train_states_per_task": TRAIN_STATES,
            "test_states_per_task": self.test_states,
        }

    def initial_states(self, task: Task, split: Split) -> list[int]:
        return split_seeds(split, TRAIN_STATES, self.test_states)

    def make_environment(self) -> Environment:
        from simplevla.suites.tabletop.environment import TabletopEnvironment

        return TabletopEnvironment(self.image_size, weighted=self.name == PUSHCUT)

    def make_expert(self, environment: Environment) -> Expert:
        from simplevla.suites.tabletop.environment import TabletopEnvironment
        from simplevla.suites.tabletop.expert import TabletopExpert

        assert isinstance(environment, TabletopEnvironment)
        return TabletopExpert(environment)


def make(config: SuiteConfig) -> Suite:
    """The suite `config.name` at `config.image_size` (64 unless given)."""
    refuse(config, config.name, "horizon_protocol", "visuals", "stepping", "sentences", "test_states")
    if sys.platform.startswith("linux"):
        # Elsewhere MuJoCo has renderers of the system's.
        renderer_name()
    return TabletopSuite(config.image_size or 64, config.name)
