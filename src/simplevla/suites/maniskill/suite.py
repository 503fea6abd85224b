"""ManiSkill behind the suite contract."""

from importlib import metadata

# Imported here so that a missing extra is noticed when the suite is asked for, not in a worker process.
import mani_skill

from simplevla.config import SuiteConfig
from simplevla.suites.base import Environment, Expert, Suite, SuiteSpec
from simplevla.suites.maniskill import catalog
from simplevla.suites.settings import choose, image_side, refuse, split_seeds
from simplevla.types import Split, Task

assert mani_skill

TITLE = "ManiSkill"
IMAGE_SIZE = 128
"""Default side of the images, pixels; the benchmark's own."""
CONTROL_HZ = 20.0
CAMERAS = ("fixed", "wrist")
VISUALS = ("stock", "lite")


class ManiskillSuite(Suite):
    """Seven tasks of a Panda arm on primitive objects."""

    name = "maniskill"

    def __init__(self, horizon: str, visuals: str, image_size: int) -> None:
        self.tasks = catalog.tasks(horizon)
        self.spec = SuiteSpec(
            cameras=dict.fromkeys(CAMERAS, (image_size, image_size)),
            state_names=(
                *(f"hand_{axis}_m" for axis in "xyz"),
                *(f"hand_rotation_{axis}_rad" for axis in "xyz"),
                "gripper_opening_m",
            ),
            action_names=(
                *(f"delta_{axis}_100mm" for axis in "xyz"),
                *(f"rotate_{axis}_minus_0.1rad" for axis in "xyz"),
                "gripper_minus_closes_plus_opens",
            ),
            action_low=(-1.0,) * 7,
            action_high=(1.0,) * 7,
            control_hz=CONTROL_HZ,
        )
        self._horizon, self._visuals, self._image_size = horizon, visuals, image_size

    @property
    def protocol(self) -> dict[str, str | int | float]:
        return {
            "suite": self.name,
            "horizon_protocol": self._horizon,
            "visuals": self._visuals,
            "image_size": self._image_size,
            "cameras": "base_camera, hand_camera",
            "goal_markers": "drawn",
            "control_mode": "pd_ee_delta_pose",
            "physics": "physx_cpu",
            "split": f"train: scenes of the seeds 0-{catalog.TRAIN_STATES - 1}, "
            f"test: {catalog.TRAIN_STATES}-{catalog.TRAIN_STATES + catalog.TEST_STATES - 1}",
            "mani_skill": metadata.version("mani_skill"),
            "sapien": metadata.version("sapien"),
        }

    def initial_states(self, task: Task, split: Split) -> list[int]:
        return split_seeds(split, catalog.TRAIN_STATES, catalog.TEST_STATES)

    def make_environment(self) -> Environment:
        from simplevla.suites.maniskill.environment import ManiskillEnvironment

        return ManiskillEnvironment(self._image_size, self._visuals)

    def make_expert(self, environment: Environment) -> Expert | None:
        from simplevla.suites.maniskill.environment import ManiskillEnvironment
        from simplevla.suites.maniskill.expert import ManiskillExpert

        assert isinstance(environment, ManiskillEnvironment), "a ManiSkill expert reads a ManiSkill environment"
        return ManiskillExpert(environment)


def make(config: SuiteConfig) -> Suite:
    """ManiSkill under the protocol that `config` names.

    Raises:
        UserError: unknown protocol or visual mode, a stepping mode or sentences, or an image size that is too small.
    """
    refuse(config, TITLE, "stepping", "sentences", "test_states")
    visuals = choose(config, TITLE, "visuals", VISUALS, "visual modes")
    return ManiskillSuite(config.horizon_protocol or "maniskill", visuals, image_side(config, IMAGE_SIZE))
