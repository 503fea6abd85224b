"""One attempt of a suite's scripted expert, inside a worker process. Imports no library but NumPy at its top."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simplevla.config import DemosConfig
from simplevla.demonstrations.episode import DemonstrationEpisode
from simplevla.rollout.workers import SuiteError, check_observation, check_result
from simplevla.suites.base import Environment, Expert, Suite, SuiteSpec, order_of
from simplevla.types import Observation, Task


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """Attempt number `number` (from 0) at demonstration `episode` of the dataset; a worker's `Job`."""

    config: DemosConfig
    episode: int
    number: int
    task: Task
    initial_state: int

    def run(self, suite: Suite, environment: Environment, beat: Callable[[], None]) -> DemonstrationEpisode | None:
        """The demonstration, or None if the task wasn't solved within its horizon. Depends on nothing but this attempt.

        Raises:
            SuiteError: the suite has no expert, or it or its expert breaks the contract.
        """
        expert = suite.make_expert(environment)
        if expert is None:
            raise SuiteError(
                f"suite {suite.name!r} has no scripted expert; give sft the folder of a dataset from elsewhere"
            )
        rng = np.random.default_rng((self.config.seed, self.episode, self.number))
        environment.watch()
        observation = _checked(environment.reset(self.task, self.initial_state), suite.spec)
        expert.reset()
        observations: list[Observation] = []
        labels: list[np.ndarray] = []
        events: list[tuple[str, ...] | None] = []
        success = False
        while not success:
            beat()
            label = human(_label(expert, suite.spec), suite.spec, self.config, rng)
            observations.append(observation)
            labels.append(label)
            result = environment.step_chunk(disturb(label, suite.spec, self.config, rng)[None].copy())
            check_result(result, 1)
            success = bool(result.success)
            if result.failed and not success:
                return None
            events.append(environment.events())
            if not success:
                if len(labels) == self.task.horizon:
                    return None
                # Nobody looks at the end of an episode.
                observation = _checked(result.observation, suite.spec)
        pictures: Any = {camera: [seen.images[camera] for seen in observations] for camera in suite.spec.cameras}
        episode = DemonstrationEpisode(
            task=self.task.name,
            instruction=self.task.instruction,
            initial_state=self.initial_state,
            attempts=self.number + 1,
            images=pictures,
            state=np.stack([seen.state for seen in observations]),
            actions=np.stack(labels),
            events=order_of(events),
        )
        # A suite's own interpreter has no Pillow; the trainer does it then.
        return episode if self.config.suite.python else compressed(episode)


def compressed(episode: DemonstrationEpisode) -> DemonstrationEpisode:
    """The same with PNG files in the place of arrays."""
    from simplevla.demonstrations.images import encode_png

    images = {
        camera: [encode_png(picture) if isinstance(picture, np.ndarray) else picture for picture in pictures]
        for camera, pictures in episode.images.items()
    }
    return replace(episode, images=images)


def _checked(observation: Observation, spec: SuiteSpec) -> Observation:
    """A copy, since a simulator may hand out the picture that it renders into next."""
    check_observation(observation, spec)
    images = {camera: image.copy() for camera, image in observation.images.items()}
    return Observation(images=images, state=observation.state.copy())


def _label(expert: Expert, spec: SuiteSpec) -> np.ndarray:
    action = np.asarray(expert.action(), dtype=np.float32)
    if action.shape != (len(spec.action_names),) or not np.isfinite(action).all():
        raise SuiteError(f"the expert gave the action {action}; expected {len(spec.action_names)} finite numbers")
    return action


def human(label: np.ndarray, spec: SuiteSpec, config: DemosConfig, rng: np.random.Generator) -> np.ndarray:
    """The expert's action as a person would give it: in few levels, and sometimes at half speed.

    Few distinct commands make an imitator that is sure where it can be. A gripper in the last dimension is a switch and
    stays as it is.
    """
    moving = len(label) - 1 if "gripper" in spec.action_names[-1] else len(label)
    given = label.copy()
    if config.levels:
        given[:moving] = np.round(given[:moving] * config.levels) / config.levels
    if config.hesitation and rng.random() < config.hesitation:
        given[:moving] /= 2
    return given


def disturb(label: np.ndarray, spec: SuiteSpec, config: DemosConfig, rng: np.random.Generator) -> np.ndarray:
    """The action [A] to execute where the expert wants `label`: sometimes with Gaussian noise, kept in bounds.

    Executing disturbed actions while storing clean ones shows states off the expert's path and the way back (DART,
    arXiv 1703.09327). The std per dimension is `noise` times half the action range; a gripper in the last dimension is
    left alone, since a dropped object ends most tasks.
    """
    if rng.random() >= config.noise_probability:
        return label
    low, high = np.array(spec.action_low), np.array(spec.action_high)
    scale = config.noise * (high - low) / 2
    if "gripper" in spec.action_names[-1]:
        scale[-1] = 0.0
    noise = scale * rng.standard_normal(len(label))
    return np.where(scale > 0, np.clip(label + noise, low, high), label).astype(np.float32)
