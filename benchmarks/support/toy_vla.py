"""TorchRL's `ToyVLAEnv` in its tracking mode as a suite, with the settings of TorchRL's own toy recipe.

Its camera shows noise and its instruction never changes. The state is the last action and the target, which an action
has to meet within a tolerance at two env steps in a row.
"""

import importlib.metadata
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from simplevla.config import SuiteConfig
from simplevla.suites.base import Suite, SuiteSpec
from simplevla.suites.gymnasium import GymnasiumSuite
from simplevla.types import Observation, Task

if TYPE_CHECKING:
    from tensordict import TensorDictBase

PUBLISHED: dict[str, Any] = {
    "action_dim": 2,
    "state_dim": 4,
    "image_shape": (3, 16, 16),
    "success_steps": 2,
    "success_tol": 0.35,
}
"""TorchRL 0.14's vla_grpo_toy.yaml."""
CHUNK_LENGTH, DECISIONS = 4, 6
TASK = Task(
    name="track",
    instruction="push the t-shaped block onto the target",
    horizon=CHUNK_LENGTH * DECISIONS,
    horizon_reason="6 decisions of 4 actions, as in TorchRL's recipe",
)


class ToyEnv(gymnasium.Env):
    """The TorchRL environment with Gymnasium's interface; an observation is its TensorDict."""

    def __init__(self) -> None:
        # Workers alone need torch.
        from torchrl.envs import ToyVLAEnv

        self.toy = ToyVLAEnv(**PUBLISHED, from_pixels=True)
        spec = self.toy.action_spec.space
        self.action_space = gymnasium.spaces.Box(spec.low.numpy(), spec.high.numpy())

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> "tuple[TensorDictBase, dict[str, Any]]":
        self.toy.set_seed(seed, static_seed=True)
        self.seen = self.toy.reset()
        return self.seen, {}

    def step(self, action: np.ndarray) -> "tuple[TensorDictBase, float, bool, bool, dict[str, Any]]":
        import torch

        self.seen["action"] = torch.as_tensor(action, dtype=torch.float32)
        self.seen = self.toy.step(self.seen)["next"]
        success = bool(self.seen["success"])
        return self.seen, float(self.seen["reward"]), bool(self.seen["terminated"]), False, {"success": success}

    def render(self) -> np.ndarray:  # type: ignore[override]
        return self.seen["pixels"].numpy()


def observe(env: gymnasium.Env, seen: "TensorDictBase") -> Observation:
    image, state = (seen["observation", name].numpy() for name in ("image", "state"))
    return Observation(images={"image": image.transpose(1, 2, 0).copy()}, state=state.copy())


def make(config: SuiteConfig) -> Suite:
    """The factory that `simplevla ... benchmarks.support.toy_vla:make` names."""
    return GymnasiumSuite(
        name="toy_vla",
        spec=SuiteSpec(
            cameras={"image": PUBLISHED["image_shape"][1:]},
            state_names=("last_x", "last_y", "target_x", "target_y"),
            action_names=("x", "y"),
            action_low=(-1.0,) * 2,
            action_high=(1.0,) * 2,
            control_hz=10.0,
        ),
        tasks=(TASK,),
        make_env=lambda task: ToyEnv(),
        observe=observe,
        success_key="success",
        train_states=5000,
        test_states=500,
        protocol={
            "torchrl": importlib.metadata.version("torchrl"),
            "success_steps": PUBLISHED["success_steps"],
            "success_tolerance": PUBLISHED["success_tol"],
        },
    )
