"""Small continual runs on the fake suite: their config, demonstrations, and the weights that they leave."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from simplevla.adapters.config import AdapterConfig, ContinualConfig
from simplevla.config import OptimizerConfig, RolloutConfig, SamplingConfig, SFTConfig, SuiteConfig, TrainConfig
from simplevla.demonstrations.dataset import DatasetWriter, DemonstrationEpisode
from simplevla.demonstrations.images import encode_png
from simplevla.suites.registry import make_suite
from small_tinyvla import for_fake_suite

TASKS = ("reach", "near", "far")
ORDER = ("reach", "far")


def saved_base(folder: Path) -> Path:
    """The folder of a policy for these tasks."""
    for_fake_suite(TASKS).save(folder)
    return folder


def config(base: Path, **changes: Any) -> ContinualConfig:
    train = TrainConfig(
        suite=SuiteConfig(name="fake_suite:make", tasks=TASKS),
        policy=str(base),
        updates=2,
        minibatches=1,
        sampling=SamplingConfig(groups=2, group_size=4, temperature=1.0),
        optimizer=OptimizerConfig(lr=1e-2, weight_decay=0.1),
        rollout=RolloutConfig(workers=1, slots_per_worker=4),
        eval_every=1,
        eval_episodes_per_task=2,
    )
    values = {"train": train, "tasks": ORDER, "adapter": AdapterConfig(rank=2, alpha=2.0), **changes}
    return ContinualConfig(**values)


def weights(folder: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(folder).items()}


def demonstrations(
    folder: Path, task: str, cameras: tuple[str, ...] = ("front", "wrist"), side: int | None = None
) -> str:
    """Four demonstrations of `task` that nobody's expert made; `TASK=FOLDER`."""
    spec = make_suite(SuiteConfig(name="fake_suite:make")).spec
    spec = replace(spec, cameras=dict.fromkeys(cameras, (side, side) if side else next(iter(spec.cameras.values()))))
    rng = np.random.default_rng(0)
    with DatasetWriter(folder / task, spec, [f"do {task}"], {}) as out:
        for number in range(4):
            images = {
                name: [encode_png(rng.integers(0, 256, (*size, 3), np.uint8)) for _ in range(6)]
                for name, size in spec.cameras.items()
            }
            out.add(
                DemonstrationEpisode(
                    task=task,
                    instruction=f"do {task}",
                    initial_state=number,
                    attempts=1,
                    images=images,
                    state=rng.normal(size=(6, len(spec.state_names))).astype(np.float32),
                    actions=rng.uniform(-1, 1, (6, len(spec.action_names))).astype(np.float32),
                )
            )
        out.finish()
    return f"{task}={folder / task}"


IMITATION = SFTConfig(batches=3, batch_size=4, validate_every=3)
