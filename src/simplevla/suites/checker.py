"""Checks of a suite, which find mistakes before hours of training."""

import math
from collections.abc import Iterator

import numpy as np

from simplevla.suites.base import Environment, Suite
from simplevla.types import SPLITS, ChunkResult, Observation, Task


def check_suite(suite: Suite, states_per_task: int = 3) -> list[str]:
    """Breaches of the contract of suites/base.py, one message each: what was expected and what was found.

    An empty list means that nothing was found. Some mistakes can't be seen from outside, an image that is upside down
    among them: look at one. Exceptions of the environment are not caught: their traceback says more.

    Args:
        states_per_task: initial states of each split and task that are tried in the simulator; 0 means all.
    """
    problems = [*_spec_problems(suite), *_task_problems(suite), *_split_problems(suite)]
    if problems:
        # The simulator's part builds on these; its messages would only repeat them.
        return problems
    environment = suite.make_environment()
    try:
        for task in suite.tasks:
            states = [_first(suite.initial_states(task, split), states_per_task) for split in SPLITS]
            found = _environment_problems(suite, environment, task, [state for part in states for state in part])
            problems += [f"task {task.name!r}: {problem}" for problem in found]
    finally:
        environment.close()
    return list(dict.fromkeys(problems))


def _first(states: list[int], number: int) -> list[int]:
    return states[:number] if number else states


def _spec_problems(suite: Suite) -> Iterator[str]:
    spec = suite.spec
    if not spec.cameras:
        yield "spec.cameras: expected at least one camera, got none"
    for name, size in spec.cameras.items():
        if len(size) != 2 or min(size) < 1:
            yield f"spec.cameras[{name!r}]: expected (height, width) in pixels, got {size}"
    if not spec.state_names:
        yield "spec.state_names: expected one name per state dimension, got none"
    lengths = (len(spec.action_names), len(spec.action_low), len(spec.action_high))
    if len(set(lengths)) != 1 or not spec.action_names:
        yield (
            "spec.action_names, action_low, action_high: expected one entry each per action dimension, "
            f"got {lengths[0]}, {lengths[1]} and {lengths[2]}"
        )
    for name, low, high in zip(spec.action_names, spec.action_low, spec.action_high, strict=False):
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            yield f"spec: bounds of action {name!r}: expected finite low < high, got {low} and {high}"
    if not spec.control_hz > 0:
        yield f"spec.control_hz: expected env steps per second above 0, got {spec.control_hz}"
    for key, value in suite.protocol.items():
        if not isinstance(value, str | int | float):
            yield f"protocol[{key!r}]: expected text or a number, got {type(value).__name__}"


def _task_problems(suite: Suite) -> Iterator[str]:
    if not suite.tasks:
        yield "tasks: expected at least one, got none"
    names = [task.name for task in suite.tasks]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"tasks: expected unique names, got {name!r} {names.count(name)} times"
    for task in suite.tasks:
        where = f"task {task.name!r}"
        if not task.instruction.strip():
            yield f"{where}: expected an instruction, got {task.instruction!r}"
        if task.instruction != task.instruction.lower():
            yield f"{where}: expected a lower-case instruction, got {task.instruction!r}"
        if task.instruction.rstrip().endswith("."):
            yield f"{where}: expected an instruction without final stop, got {task.instruction!r}"
        if type(task.horizon) is not int or task.horizon <= 0:
            yield f"{where}: expected a horizon of 1 or more env steps, got {task.horizon!r}"
        if not task.horizon_reason.strip():
            yield f"{where}: expected a reason for its horizon, got {task.horizon_reason!r}"


def _split_problems(suite: Suite) -> Iterator[str]:
    for task in suite.tasks:
        states = {split: suite.initial_states(task, split) for split in SPLITS}
        for split, indices in states.items():
            # A suite for evaluation alone has no train states.
            if not indices and split == "test":
                yield f"task {task.name!r}: expected {split} initial states, got none"
            if len(set(indices)) != len(indices):
                yield f"task {task.name!r}: expected each {split} initial state once, got {len(indices)} entries, "
                f"{len(set(indices))} different ones"
        shared = sorted(set(states["train"]) & set(states["test"]))
        if shared:
            yield (
                f"task {task.name!r}: expected disjoint train and test initial states, got {len(shared)} in both: "
                f"{', '.join(map(str, shared[:5]))}{' ...' if len(shared) > 5 else ''}"
            )


def _environment_problems(suite: Suite, environment: Environment, task: Task, states: list[int]) -> Iterator[str]:
    first = environment.reset(task, states[0])
    yield from _observation_problems(suite, first, "after reset")
    yield from _picture_problems(environment.render())
    if suite.real_world:
        # The rest moves it, and expects two starts to be alike.
        return

    yield from _chunk_problems(suite, environment, _zeros(suite, 1))
    environment.reset(task, states[0])
    # Random, not zeros: the reset that follows must undo a scene that has moved.
    moves = np.random.default_rng(0).uniform(
        suite.spec.action_low, suite.spec.action_high, (min(3, task.horizon), len(suite.spec.action_names))
    )
    yield from _chunk_problems(suite, environment, moves.astype(np.float32))

    again = environment.reset(task, states[0])
    if difference := _difference(first, again):
        yield (
            f"initial state {states[0]}: expected the same observation at each reset, also after env steps, "
            f"got another {difference}"
        )
    if type(environment).reset_unseen is not Environment.reset_unseen:
        yield from _unseen_problems(suite, environment, task, states[0])
    seen = [(states[0], again)]
    for state in states[1:]:
        observation = environment.reset(task, state)
        same = [number for number, other in seen if not _difference(other, observation)]
        if same:
            yield f"initial states {same[0]} and {state}: expected different scenes, got the same observation"
        seen = [seen[0], (state, observation)]
    solved = [state for state in states if _solved_at_once(suite, environment, task, state)]
    if solved:
        yield (
            "expected an unsolved task after reset and one action of zeros, got success from "
            f"{len(solved)} of {len(states)} initial states: {', '.join(map(str, solved[:10]))}"
        )
    yield from _expert_problems(suite, environment, task, [state for state in states if state not in solved])


def _unseen_problems(suite: Suite, environment: Environment, task: Task, state: int) -> Iterator[str]:
    """Problems of `reset_unseen`: a sibling must begin like its episode, though its first picture isn't rendered."""
    environment.reset(task, state)
    after_reset = environment.step_chunk(_zeros(suite, 1)).observation
    moves = np.clip(1.0, suite.spec.action_low, suite.spec.action_high).astype(np.float32)
    environment.step_chunk(moves[None])
    environment.reset_unseen(task, state)
    if difference := _difference(after_reset, environment.step_chunk(_zeros(suite, 1)).observation):
        yield (
            f"reset_unseen: initial state {state}: expected the scene of reset, got another {difference} after one "
            "action of zeros"
        )


def _observation_problems(suite: Suite, observation: Observation, when: str) -> Iterator[str]:
    expected = list(suite.spec.cameras)
    if sorted(observation.images) != sorted(expected):
        yield f"{when}: expected cameras {expected} as in spec, got {list(observation.images)}"
    for name, image in observation.images.items():
        where = f"{when}: image {name!r}"
        size = suite.spec.cameras.get(name)
        if image.dtype != np.uint8:
            values = f", values {image.min():g} to {image.max():g}"
            yield f"{where}: expected dtype uint8 with values 0 to 255, got {image.dtype}{values}"
        if size is not None and image.shape != (*size, 3):
            yield f"{where}: expected shape {(*size, 3)} as in spec, got {image.shape}"
        if image.size and image.min() == image.max():
            yield f"{where}: expected a picture, got {image.flat[0]} in every pixel"
        elif image.dtype == np.uint8 and image.max() <= 1:
            yield f"{where}: expected values 0 to 255, got at most {image.max()}; was it scaled to 0..1?"
    state = observation.state
    if state.dtype != np.float32:
        yield f"{when}: state: expected dtype float32, got {state.dtype}"
    if state.shape != (len(suite.spec.state_names),):
        names = len(suite.spec.state_names)
        yield f"{when}: state: expected shape ({names},) as in spec.state_names, got {state.shape}"
    if not np.isfinite(state).all():
        yield f"{when}: state: expected finite numbers, got {state.tolist()}"


def _picture_problems(picture: np.ndarray) -> Iterator[str]:
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        yield f"render(): expected uint8 [height, width, 3], got {picture.dtype} {list(picture.shape)}"


def _zeros(suite: Suite, length: int) -> np.ndarray:
    """The action nearest to doing nothing that the bounds allow."""
    action = np.clip(0.0, suite.spec.action_low, suite.spec.action_high).astype(np.float32)
    return np.repeat(action[None], length, axis=0)


def _chunk_problems(suite: Suite, environment: Environment, actions: np.ndarray) -> Iterator[str]:
    length = len(actions)
    result = environment.step_chunk(actions)
    if not isinstance(result, ChunkResult):
        yield f"step_chunk: expected a ChunkResult, got {type(result).__name__}"
        return
    if type(result.success) is not bool:
        yield f"step_chunk: success: expected a bool, got {result.success!r} ({type(result.success).__name__})"
    over = bool(result.success or result.failed)
    fewest = 1 if over else length
    if isinstance(result.executed, bool) or not isinstance(result.executed, int | np.integer):
        yield f"step_chunk: executed: expected an int, got {result.executed!r} ({type(result.executed).__name__})"
    elif not fewest <= result.executed <= length:
        why = "1 to " if over else "without success "
        yield f"step_chunk: executed: expected {why}{length} for {length} actions, got {result.executed}"
    yield from _observation_problems(suite, result.observation, "after a chunk")


def _difference(a: Observation, b: Observation) -> str:
    """The part of the observation that differs, in words; empty if none does."""
    for name, image in a.images.items():
        other = b.images.get(name)
        if other is None or not np.array_equal(image, other):
            return f"image {name!r}"
    return "" if np.array_equal(a.state, b.state, equal_nan=True) else "state"


def _solved_at_once(suite: Suite, environment: Environment, task: Task, state: int) -> bool:
    environment.reset(task, state)
    return bool(environment.step_chunk(_zeros(suite, 1)).success)


def _expert_problems(suite: Suite, environment: Environment, task: Task, states: list[int]) -> Iterator[str]:
    """The expert solves the task; its actions as one chunk stop where the task is solved."""
    expert = suite.make_expert(environment)
    if expert is None or not states:
        return
    low, high = np.array(suite.spec.action_low), np.array(suite.spec.action_high)
    for state in states[:3]:
        environment.reset(task, state)
        expert.reset()
        actions: list[np.ndarray] = []
        solved = False
        while not solved and len(actions) < task.horizon:
            action = expert.action()
            if action.shape != low.shape or action.dtype != np.float32:
                yield f"expert: expected actions float32 [{len(low)}], got {action.dtype} {list(action.shape)}"
                return
            if (action < low).any() or (action > high).any() or not np.isfinite(action).all():
                yield f"expert: expected actions within the spec's bounds, got {action.tolist()}"
                return
            actions.append(action)
            solved = bool(environment.step_chunk(action[None]).success)
        if solved:
            break
    else:
        yield f"expert: expected success within {task.horizon} env steps, got none from initial states {states[:3]}"
        return
    environment.reset(task, state)
    result = environment.step_chunk(np.concatenate([np.stack(actions), _zeros(suite, 2)]))
    if not result.success or result.executed != len(actions):
        yield (
            f"step_chunk: expected the expert's {len(actions)} actions, replayed in one chunk with two more, to end "
            f"with success after {len(actions)}, got success {result.success} after {result.executed}"
        )
