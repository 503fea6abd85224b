"""Settings that were given and would have no effect: refused, or warned of where a recipe may have brought them."""

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any

from simplevla.config import EvalConfig, LearnersConfig, RayConfig, SFTConfig, TrainConfig
from simplevla.errors import UserError, brief

Reasons = Mapping[str, str]
"""Name of a setting, such as `sampling.eta` -> why it has no effect."""


def refuse_idle(config: Any, idle: Reasons) -> None:
    """Refuses settings of `config` that differ from their defaults and have no effect.

    Raises:
        UserError: naming the first one, its value and the reason.
    """
    for said in _given(config, idle):
        raise UserError(f"{said}; leave it out")


def warn_of_idle(config: Any, idle: Reasons) -> None:
    """Warns of settings of `config` that differ from their defaults and have no effect."""
    for said in _given(config, idle):
        warnings.warn(said, stacklevel=3)


def idle_in_ray(ray: LearnersConfig, prefix: str = "ray.") -> Reasons:
    """Settings of a cluster that nothing of this run is on."""
    counts: dict[str, tuple[str, ...]] = {"learners": ("learner_cpus", "learner_gpus", "divide")}
    if isinstance(ray, RayConfig):
        counts |= {"actors": ("cpus", "gpus", "answer_timeout_s"), "simulators": ("simulator_cpus",)}
    idle = {
        name: f"{prefix}{count} is 0" for count, names in counts.items() if not getattr(ray, count) for name in names
    }
    if not any(getattr(ray, count) for count in counts):
        idle["address"] = f"{' and '.join(prefix + count for count in counts)} are 0"
    return {prefix + name: why for name, why in idle.items()}


def check_train(config: TrainConfig, unused_by_policy: Reasons) -> None:
    """Refuses or warns of settings of RL without effect.

    Args:
        unused_by_policy: settings that the policy has no use for.

    Raises:
        UserError: one that contradicts another.
    """
    of_dynamic = ("sampling.max_oversampling", "sampling.filter_low", "sampling.filter_high")
    dynamic = {} if config.sampling.dynamic else dict.fromkeys(of_dynamic, "sampling.dynamic is off")
    flow = (
        {}
        if config.denoising.flow == "sde"
        else {"sampling.alpha": "denoising.flow is 'noise', whose noise is learned"}
    )
    refuse_idle(config, {**idle_in_ray(config.ray), **dynamic, **flow})
    evaluation = {} if config.eval_every else {"eval_episodes_per_task": "eval_every is 0"}
    warn_of_idle(config, {**unused_by_policy, **evaluation})
    if config.device != "cpu" and config.ray.actors and not config.ray.gpus:
        warnings.warn(
            f"device is {config.device!r}, and the {config.ray.actors} ray.actors, which roll out, have no GPU; give --ray.gpus 1 "
            "where they should have",
            stacklevel=2,
        )


def check_sft(config: SFTConfig) -> None:
    """Refuses or warns of settings of imitation without effect.

    Raises:
        UserError: one that contradicts another.
    """
    replay = {} if config.replay else {"replay_share": "there is no replay"}
    refuse_idle(config, {**idle_in_ray(config.ray), **replay})
    if not config.eval_episodes_per_task:
        warn_of_idle(config, {"suite": "eval_episodes_per_task is 0"})


def check_eval(config: EvalConfig) -> None:
    """Refuses a temperature that greedy actions don't have, and another task's instruction where none is told.

    Raises:
        UserError: both are given.
    """
    if not config.instruction:
        refuse_idle(config, {"instruction_of": "instruction is off (--no-instruction)"})
    if config.greedy:
        refuse_idle(config, {"temperature": "greedy is on (--no-greedy samples)"})


def _given(config: Any, idle: Reasons) -> Iterator[str]:
    for name, why in idle.items():
        path, _, last = name.rpartition(".")
        part = attrgetter(path)(config) if path else config
        value = getattr(part, last)
        if value != _default(part, last):
            shown = f"of {value.name!r}" if hasattr(value, "name") else brief(value)
            yield f"{name} is {shown} and has no effect: {why}"


def _default(part: Any, name: str) -> Any:
    field = part.__dataclass_fields__[name]
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()
