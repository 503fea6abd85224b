"""Meta-World behind the suite contract."""

from importlib import metadata

# Imported here so that a missing extra is noticed when the suite is asked for, not in a worker process.
import metaworld  # noqa: F401

from simplevla.config import SuiteConfig
from simplevla.suites.base import Environment, Expert, Suite, SuiteSpec
from simplevla.suites.metaworld import catalog
from simplevla.suites.metaworld.camera import CAMERAS, VISUALS
from simplevla.suites.metaworld.environment import MetaworldEnvironment, Simulations
from simplevla.suites.metaworld.expert import MetaworldExpert
from simplevla.suites.metaworld.simulation import CONTROL_HZ
from simplevla.suites.offscreen import renderer_name
from simplevla.suites.settings import choose, image_side, refuse, split_seeds
from simplevla.types import Split, Task

TITLE = "Meta-World"
IMAGE_SIZE = 128
"""Default side of the images, pixels: a goal marker of 4 cm is 4 pixels wide in the fixed view, at 64 it is 2."""


class MetaworldSuite(Suite):
    """50 tasks of one arm; objects and goals differ, so image and instruction tell the task.

    The goal is never in the state. Where no object shows it, the benchmark's marker does (a ball of 2 cm radius), which
    is drawn in every mode. `sweep-v3` is the exception: its marker stays under the robot, and the goal is the table's
    edge beside the block.
    """

    name = "metaworld"

    def __init__(self, horizon: str, visuals: str, image_size: int) -> None:
        self.tasks = catalog.tasks(horizon)
        self.spec = SuiteSpec(
            cameras=dict.fromkeys(CAMERAS, (image_size, image_size)),
            state_names=("hand_x_m", "hand_y_m", "hand_z_m", "gripper_opening_10cm"),
            action_names=("delta_x_1cm", "delta_y_1cm", "delta_z_1cm", "gripper_minus_opens_plus_closes"),
            action_low=(-1.0,) * 4,
            action_high=(1.0,) * 4,
            control_hz=CONTROL_HZ,
        )
        self._horizon, self._visuals, self._image_size = horizon, visuals, image_size
        self._simulations = Simulations(visuals, image_size)

    @property
    def protocol(self) -> dict[str, str | int | float]:
        return {
            "suite": self.name,
            "horizon_protocol": self._horizon,
            "horizon": self.tasks[0].horizon,
            "visuals": self._visuals,
            "image_size": self._image_size,
            "cameras": f"{CAMERAS['fixed']} turned by 180 degrees, {CAMERAS['wrist']}",
            "goal_markers": "drawn",
            "renderer": renderer_name(),
            "split": f"train: layouts of the seeds 0-{catalog.TRAIN_STATES - 1}, "
            f"test: {catalog.TRAIN_STATES}-{catalog.TRAIN_STATES + catalog.TEST_STATES - 1}",
            "metaworld": metadata.version("metaworld"),
            "mujoco": metadata.version("mujoco"),
        }

    def initial_states(self, task: Task, split: Split) -> list[int]:
        return split_seeds(split, catalog.TRAIN_STATES, catalog.TEST_STATES)

    def make_environment(self) -> Environment:
        return MetaworldEnvironment(self._simulations, self._image_size)

    def make_expert(self, environment: Environment) -> Expert | None:
        assert isinstance(environment, MetaworldEnvironment), "a Meta-World expert reads a Meta-World environment"
        return MetaworldExpert(environment)


def make(config: SuiteConfig) -> Suite:
    """Meta-World under the protocol that `config` names.

    Raises:
        UserError: unknown protocol or visual mode, a stepping mode or sentences, or an image size that is too small.
    """
    refuse(config, TITLE, "stepping", "sentences", "test_states")
    visuals = choose(config, TITLE, "visuals", VISUALS, "visual modes")
    return MetaworldSuite(config.horizon_protocol or "short", visuals, image_side(config, IMAGE_SIZE))
