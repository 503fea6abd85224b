"""Meta-World's own scripted policies, one per task: feedback laws on the full state."""

import warnings

import numpy as np
from metaworld.policies import ENV_POLICY_MAP

from simplevla.suites.base import Expert
from simplevla.suites.metaworld.environment import MetaworldEnvironment

# The policies command more than the arm can do, on purpose, and warn of it at each env step.
warnings.filterwarnings("ignore", message="Constant.* may be too high", module="metaworld.policies")


class MetaworldExpert(Expert):
    """The benchmark's scripted policy for the task of the last reset."""

    def __init__(self, environment: MetaworldEnvironment) -> None:
        self._environment = environment

    def reset(self) -> None:
        assert self._environment.simulation is not None, "reset the environment first"
        self._policy = ENV_POLICY_MAP[self._environment.simulation.task_name]()

    def action(self) -> np.ndarray:
        assert self._environment.simulation is not None
        action = self._policy.get_action(self._environment.simulation.full_state)
        return np.clip(action, -1.0, 1.0).astype(np.float32)
