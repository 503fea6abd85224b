"""Record of a policy's training, kept in its folder and compared with what the policy is used with later."""

import dataclasses
import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Literal, Protocol

from simplevla.checked import Above0, Count, Pixels, dataclass
from simplevla.errors import UserError
from simplevla.reading import ReadingConfig, new_instructions
from simplevla.storage import read_as
from simplevla.types import Split, Task

FILE = "trained_on.json"
"""Name of the file in a policy folder; folders of earlier versions have none."""
SILENT = {
    "published": "the published checkpoint was trained on",
    "sft": "demonstrations from elsewhere came from",
    "rl": "the policy's RL met",
    "unknown": "the policy was trained on, since its folder doesn't say",
}
"""Stage that doesn't say which initial states it met -> how that goes on."""
SHOWN = 3
"""Instructions or settings that a message names, of many."""


class Spec(Protocol):
    """The part of a suite's spec that matters here."""

    @property
    def cameras(self) -> dict[str, tuple[int, int]]: ...

    @property
    def state_names(self) -> tuple[str, ...]: ...

    @property
    def action_names(self) -> tuple[str, ...]: ...

    @property
    def control_hz(self) -> float: ...


class Suite(Protocol):
    """The part of a suite that is asked for; policies import none."""

    name: str
    tasks: tuple[Task, ...]

    @property
    def spec(self) -> Spec: ...

    @property
    def protocol(self) -> dict[str, str | int | float]: ...

    def initial_states(self, task: Task, split: Split) -> list[int]: ...


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """One stage of a policy's training; what isn't known is None or empty."""

    stage: Literal["sft", "rl", "published", "unknown"]
    """`unknown`: in the folder of an earlier version, which says nothing."""
    suite: str | None = None
    """None: demonstrations, or a checkpoint, from elsewhere."""
    protocol: dict[str, str | bool | int | float] = field(default_factory=dict)
    """Protocol of the suite at that time."""
    cameras: dict[str, tuple[Pixels, Pixels]] = field(default_factory=dict)
    """Camera -> (height, width) in pixels."""
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    """One per dimension, in order."""
    control_hz: Above0 | None = None
    """Actions per second."""
    instructions: tuple[str, ...] = ()
    initial_states: dict[str, tuple[Count, ...]] | None = None
    """Task of the suite -> the initial states that training may have met; None: nobody knows."""
    reading: ReadingConfig | None = None
    """Choice and names of what was read of the demonstrations; None: all, by their own names."""

    def __post_init__(self) -> None:
        if self.initial_states is not None:
            states = {task: tuple(sorted(set(numbers))) for task, numbers in self.initial_states.items()}
            object.__setattr__(self, "initial_states", states)


@dataclass(frozen=True, kw_only=True)
class Stages:
    """The content of `FILE`, in the order of training."""

    stages: tuple[TrainedOn, ...]


def rl_stage(suite: Suite) -> TrainedOn:
    """RL on the suite's train states."""
    return TrainedOn(
        stage="rl",
        suite=suite.name,
        protocol=dict(suite.protocol),
        cameras={name: (int(height), int(width)) for name, (height, width) in suite.spec.cameras.items()},
        state_names=tuple(suite.spec.state_names),
        action_names=tuple(suite.spec.action_names),
        control_hz=suite.spec.control_hz,
        instructions=tuple(task.instruction for task in suite.tasks),
        initial_states={task.name: tuple(suite.initial_states(task, "train")) for task in suite.tasks},
    )


def recorded_reading(reading: ReadingConfig) -> ReadingConfig | None:
    """The settings `reading` without what else a config may hold; None if nothing is chosen or named."""
    names = [setting.name for setting in dataclasses.fields(ReadingConfig)]
    alone = ReadingConfig(**{name: getattr(reading, name) for name in names})
    return None if alone == ReadingConfig() else alone


def with_stage(stages: tuple[TrainedOn, ...], stage: TrainedOn) -> tuple[TrainedOn, ...]:
    """`stages` and then `stage`, once if it only goes on with the last one."""
    return stages if stages and stages[-1] == stage else (*stages, stage)


def differences(stages: Sequence[TrainedOn], cameras: Iterable[str], suite: Suite) -> list[str]:
    """Names what of `suite` the policy wasn't trained for, one sentence each; nothing where its training isn't known.

    Args:
        stages: in the order of training.
        cameras: those that the policy looks through.
    """
    found: list[str] = []
    named = [stage for stage in stages if stage.suite is not None]
    same = [stage for stage in named if stage.suite == suite.name]
    if named and not same:
        found.append(f"it was trained on the suite {named[-1].suite!r}, this is {suite.name!r}")
    if same:
        then, now = same[-1].protocol, dict(suite.protocol)
        changed = [f"{key} {then.get(key)!r}, now {now.get(key)!r}" for key in now if then.get(key) != now.get(key)]
        if changed:
            found.append(f"it was trained with {_some(changed)}")
    newest = list(reversed(stages))
    sizes = next((stage.cameras for stage in newest if stage.cameras), {})
    for camera in cameras:
        then_size, now_size = sizes.get(camera), suite.spec.cameras.get(camera)
        if then_size and now_size and then_size != tuple(now_size):
            found.append(
                f"camera {camera!r} had {then_size[0]} x {then_size[1]} pixels, now {now_size[0]} x {now_size[1]}"
            )
    found += layout_differences(stages, suite.spec.state_names, suite.spec.action_names, suite.spec.control_hz)
    known = {instruction for stage in stages for instruction in stage.instructions}
    strange = [repr(task.instruction) for task in suite.tasks if task.instruction not in known]
    # Where a stage doesn't say what it told the policy, nobody knows what it was never told.
    if strange and stages and all(stage.instructions for stage in stages):
        found.append(
            f"it was never told {_some(strange)} ({len(strange)} of {len(suite.tasks)} instructions of the suite), but for "
            f"example {sorted(known)[0]!r}"
        )
    for stage in stages:
        for old, new in new_instructions(stage.reading.instructions).items() if stage.reading else ():
            if old not in known and old in {task.instruction for task in suite.tasks}:
                found.append(f"it was told {new!r} where its demonstrations, as this suite, said {old!r}")
    return found


def layout_differences(
    stages: Sequence[TrainedOn], state_names: Sequence[str], action_names: Sequence[str], control_hz: float | None
) -> list[str]:
    """Names what of state, action and control rate isn't as in the newest of `stages` that says its own."""
    found, newest = [], list(reversed(stages))
    for what, now in (("state", tuple(state_names)), ("action", tuple(action_names))):
        names = next((known for stage in newest if (known := getattr(stage, f"{what}_names"))), ())
        if names and now and names != now:
            found.append(f"the {what}'s dimensions were {', '.join(names)}, now {', '.join(now)}")
    rate = next((stage.control_hz for stage in newest if stage.control_hz is not None), None)
    if rate is not None and control_hz is not None and abs(rate - control_hz) > 0.01 * rate:
        found.append(f"it was trained at {rate:g} actions per second, this is {control_hz:g}")
    return found


def warn_of_differences(stages: Sequence[TrainedOn], cameras: Iterable[str], suite: Suite) -> None:
    """Warns once of all `differences`: they may be meant, and they change what a success rate means."""
    found = differences(stages, cameras, suite)
    if found:
        warnings.warn(
            f"this policy and suite {suite.name!r} differ: {'; '.join(found)}. If that isn't meant, use the settings it was trained with.",
            stacklevel=2,
        )


def held_out(stages: Sequence[TrainedOn], suite: str, pairs: Sequence[tuple[str, int]]) -> str:
    """`yes` if training met none of the evaluated (task, initial state) `pairs`, else `no: ...` or `unknown: ...`."""
    if not stages:
        return "unknown: the policy's folder doesn't say what it was trained on"
    seen = {
        (task, state)
        for stage in stages
        if stage.suite == suite and stage.initial_states
        for task, states in stage.initial_states.items()
        for state in states
    }
    met = sum(pair in seen for pair in pairs)
    if met:
        return f"no: training may have met {met} of these {len(pairs)} initial states"
    silent = next((stage for stage in stages if stage.initial_states is None), None)
    if silent is not None:
        return f"unknown: nobody knows which initial states {SILENT[silent.stage]}"
    return "yes"


def stages_as_json(stages: Sequence[TrainedOn]) -> bytes:
    """The content of `FILE`, which `read_stages` reads."""
    records = [dataclasses.asdict(stage) for stage in stages]
    for record in records:
        # Left out, so that versions that don't know it read the file.
        if record["reading"] is None:
            del record["reading"]
    return (json.dumps({"stages": records}, indent=1) + "\n").encode()


def read_stages(file: Path) -> tuple[TrainedOn, ...]:
    """Reads what `stages_as_json` made; one unknown stage where there is no file.

    Raises:
        UserError: the file is damaged.
    """
    if not file.is_file():
        return (TrainedOn(stage="unknown"),)
    try:
        return read_as(file, Stages).stages
    except UserError as error:
        raise UserError(f"{error}; take it from another checkpoint of the same run, or delete it") from None


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more
