"""Decisions for several clients in one forward pass; no answer depends on who else is in it."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from simplevla.errors import UserError
from simplevla.policies.base import ObservationBatch, Policy, Sampling
from simplevla.types import Observation

LARGEST = 16
"""Decisions of one forward pass."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One decision that a client waits for."""

    observation: Observation
    instruction: str
    number: int
    """Decisions that this client has had; the noise of a diffusion or flow head follows from it alone."""
    answer: "asyncio.Future[np.ndarray]"
    """Actions float32 [H, A] in the environment's units."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the images; equal ones fit into one batch."""
        return tuple(image.shape for image in self.observation.images.values())


class Batcher:
    """Answers questions: all that came while the last forward pass was computed go into the next one."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._waiting: asyncio.Queue[Question] = asyncio.Queue()

    async def decide(self, observation: Observation, instruction: str, number: int) -> np.ndarray:
        """The greedy chunk float32 [H, A] in the environment's units.

        Raises:
            UserError: the policy refuses the observation or the instruction, or gives no finite actions.
        """
        answer: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait(
            Question(observation=observation, instruction=instruction, number=number, answer=answer)
        )
        return await answer

    async def run(self) -> None:
        """Answers until it is cancelled; computes in a thread, so that clients are heard meanwhile."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "policy") as thread:
            while True:
                questions = [await self._waiting.get()]
                while len(questions) < LARGEST and not self._waiting.empty():
                    questions.append(self._waiting.get_nowait())
                alike: dict[tuple[tuple[int, ...], ...], list[Question]] = {}
                for question in questions:
                    alike.setdefault(question.shapes, []).append(question)
                for some in alike.values():
                    answers = await loop.run_in_executor(thread, answer_all, self.policy, some)
                    for question, answer in zip(some, answers, strict=True):
                        if question.answer.done():  # its client is gone
                            continue
                        if isinstance(answer, Exception):
                            question.answer.set_exception(answer)
                        else:
                            question.answer.set_result(answer)


def answer_all(policy: Policy, questions: list[Question]) -> list[np.ndarray | Exception]:
    """One answer per question; where the policy fails, each is asked alone, so that one fault stays its client's."""
    try:
        batch = ObservationBatch.stacked(
            [question.observation for question in questions], [question.instruction for question in questions]
        )
        generators = [np.random.default_rng(question.number) for question in questions]
        device = next(policy.parameters()).device
        actions = np.asarray(policy.act(batch.to(device), Sampling(greedy=True), generators).actions, np.float32)
        expected = (len(questions), policy.chunk_length, policy.action_dim)
        if actions.shape != expected:
            raise UserError(
                f"the policy's actions have shape {actions.shape}; expected {expected}. Mend what its act() returns"
            )
    except Exception as error:  # also a fault of the program: the other clients go on
        if len(questions) == 1:
            return [error]
        return [answer for question in questions for answer in answer_all(policy, [question])]
    return [chunk if np.isfinite(chunk).all() else _not_finite() for chunk in actions]


def _not_finite() -> UserError:
    return UserError(
        "the policy's actions are NaN or infinite; look for extreme values in the observation, or serve an earlier checkpoint"
    )


def warm_up(policy: Policy) -> None:
    """Acts once alone and once in a full batch, so that the first client doesn't wait for what is built at first use.

    Raises:
        UserError: the policy can't act.
    """
    stages = policy.trained_on[::-1]
    sizes = next((stage.cameras for stage in stages if stage.cameras), {})
    seen = Observation(
        images={camera: np.zeros((*sizes.get(camera, (224, 224)), 3), np.uint8) for camera in policy.cameras},
        state=np.zeros(policy.state_dim, np.float32),
    )
    for size in (1, LARGEST):
        batch = ObservationBatch.stacked([seen] * size, [policy.known_instruction] * size).to(
            next(policy.parameters()).device
        )
        policy.act(batch, Sampling(greedy=True), [np.random.default_rng(0) for _ in range(size)])
