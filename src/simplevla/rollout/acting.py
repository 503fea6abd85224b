"""Answers of a policy, checked before an environment executes it and before anything is trained on it."""

from collections.abc import Sequence

import numpy as np

from simplevla.errors import UserError
from simplevla.types import EpisodeRequest


def check_sample(
    actions: np.ndarray,
    logprobs: np.ndarray,
    trace: np.ndarray,
    chunk: tuple[int, int],
    requests: Sequence[EpisodeRequest],
    state: np.ndarray,
) -> None:
    """Refuses a policy's answer that no environment should execute: a fault of the policy, never a failure at its task.

    Args:
        actions: [D, H, A], with `chunk` = (H, A).
        logprobs: [D, U].
        trace: [D, ...].
        requests: [D] episodes that the decisions belong to.
        state: float32 [D, S] that they were made in.

    Raises:
        UserError: a shape is wrong, or a number isn't finite.
    """
    decisions = len(requests)
    if actions.shape != (decisions, *chunk):
        raise UserError(
            f"the policy's actions have shape {actions.shape}; expected {(decisions, *chunk)}: decisions, actions in a "
            "chunk, action dimensions. Mend what its act() returns"
        )
    for name, array in {"log-probabilities": logprobs, "trace": trace}.items():
        if array.ndim < 2 or len(array) != decisions:
            raise UserError(
                f"the policy's {name} have shape {array.shape}; expected a row for each of {decisions} decisions. "
                "Mend what its act() returns"
            )
    for name, array in {"actions": actions, "log-probabilities": logprobs, "trace": trace}.items():
        wrong = ~np.isfinite(array.reshape(decisions, -1))
        if wrong.any():
            row = int(wrong.any(axis=1).argmax())
            request = requests[row]
            raise UserError(
                f"the policy's {name} are NaN or infinite in task {request.task.name!r}, initial state {request.initial_state} "
                f"({wrong[row].sum()} of {wrong.shape[1]} numbers; in {wrong.any(axis=1).sum()} of {decisions} decisions; the "
                f"state there is {state[row].min():g} to {state[row].max():g}). No episode is judged by this. If it happens in "
                "every state, the policy's weights are to blame: take an earlier checkpoint, or train again with a lower "
                "learning rate; if in a few, look for extreme values in the observation"
            )
