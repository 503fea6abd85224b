"""Parts that everything on Ray needs: a cluster with enough resources, equal environments, the original errors."""

import os
import sys
from collections.abc import Mapping

import ray
from ray.exceptions import RayTaskError

from simplevla.config import LearnersConfig, RayConfig, to_dict
from simplevla.errors import UserError

RENDERING = ("MUJOCO_GL", "PYOPENGL_PLATFORM")
"""Variables that say how pictures are drawn."""


def check_resources(learners: LearnersConfig, resources: dict[str, float]) -> None:
    """Refuses at once what the cluster could never place.

    Raises:
        UserError: naming what is missing.
    """
    settings = learners if isinstance(learners, RayConfig) else RayConfig(**to_dict(learners))
    simulators = settings.simulators * max(settings.actors, 1)
    needed = {
        "CPU": settings.actors * settings.cpus
        + simulators * settings.simulator_cpus
        + settings.learners * settings.learner_cpus,
        "GPU": settings.actors * settings.gpus + settings.learners * settings.learner_gpus,
    }
    missing = {
        name: count - resources.get(name, 0.0) for name, count in needed.items() if count > resources.get(name, 0.0)
    }
    if missing:
        raise UserError(
            f"{settings.actors} rollout actors, {simulators} simulators and {settings.learners} learners need {listed(needed)}; the cluster has "
            f"{listed({name: resources.get(name, 0.0) for name in needed})}: {listed(missing)} are missing. Add nodes, or lower ray.actors, "
            "ray.simulators, ray.learners or what each of them reserves"
        )


def listed(resources: dict[str, float]) -> str:
    return ", ".join(f"{resources[name]:g} {name}s" for name in ("CPU", "GPU") if name in resources)


def surroundings(variables: Mapping[str, str] | None = None) -> dict[str, dict[str, str]]:
    """Ray's `runtime_env` of an actor, so that it finds the user's own suite and draws pictures as here."""
    path = os.pathsep.join(filter(None, sys.path))
    drawn = {name: os.environ[name] for name in RENDERING if name in os.environ}
    return {"env_vars": {"PYTHONPATH": path, **drawn, **(variables or {})}}


def connect(settings: LearnersConfig) -> None:
    """Joins the cluster at `settings.address`, or starts one, unless this process has one already.

    Raises:
        UserError: there is none.
    """
    if ray.is_initialized():
        return
    try:
        ray.init(
            address=settings.address or "local", log_to_driver=False, include_dashboard=False, logging_level="ERROR"
        )
    except ConnectionError as error:
        raise UserError(
            f"no Ray cluster at {settings.address!r} ({error}); start one with `ray start --head`, or leave ray.address empty"
        ) from None


def cause_of(error: RayTaskError) -> Exception:
    """The exception raised inside the actor, as the local engine would raise it."""
    cause = error.cause
    return cause if isinstance(cause, Exception) else error
