"""The structures of continual training: what each trains for a task, and how the policy is deployed afterwards."""

import re

from simplevla.adapters.bank import AdapterBank, bank_of
from simplevla.adapters.config import ContinualConfig
from simplevla.adapters.layers import check_name
from simplevla.adapters.merging import fold
from simplevla.adapters.routing import RoutedPolicy, TaskRouter
from simplevla.effect import warn_of_idle
from simplevla.errors import UserError
from simplevla.policies.base import ObservationBatch, Policy
from simplevla.suites.base import Suite

SHARED = "shared"
FOLD_STATES = 4
"""Initial states per task on which a folded adapter is compared with the unfolded one."""


def adapter_name(config: ContinualConfig, task: str) -> str:
    """Name of the adapter that learns `task`; what a name can't hold, such as a comma, becomes `_`."""
    return SHARED if config.structure == "shared" else re.sub(r"[^A-Za-z0-9_-]+_*", "_", task).lstrip("_-")


def check_tasks(config: ContinualConfig, suite: Suite) -> None:
    """Refuses tasks whose adapters couldn't be told apart.

    Raises:
        UserError: an unknown task, two of one instruction with per_task, or adapters of one name or an impossible one.
    """
    told: dict[str, str] = {}
    named: dict[str, str] = {}
    for task in config.tasks:
        other = told.setdefault(suite.task(task).instruction, task)
        if config.structure == "per_task" and other != task:
            raise UserError(
                f"tasks {other!r} and {task!r} have the same instruction, {suite.task(task).instruction!r}: nobody could tell which of "
                "their adapters is meant. Train one of them, or use the structure 'shared'"
            )
        if config.structure in ("per_task", "merge_then_new"):
            name = adapter_name(config, task)
            check_name(name)
            if named.setdefault(name, task) != task:
                raise UserError(
                    f"the adapters of tasks {named[name]!r} and {task!r} would both be called {name!r}; expected two names. Train one "
                    "of them, or use the structure 'shared'"
                )


def check_base(config: ContinualConfig, base: Policy, suite: Suite) -> None:
    """Refuses a base with which the structure would fail after a task, or would train something else than what acts.

    Raises:
        UserError: saying what the base has, and which structure fits.
    """
    name, structure = config.train.policy, config.structure
    bank = bank_of(base) if base.adapter_bank is not None else None
    if structure == "full":
        if bank is not None and bank.names:
            raise UserError(
                f"{name} has the adapters {', '.join(bank.names)}, and the structure 'full' trains a policy without any; expected one "
                "without. Use another structure"
            )
        return
    kind = config.adapter.kind
    if bank is not None:
        going_on = _going_on(config, bank, suite)
        if any(bank.entry(parent).config != config.adapter for parent in going_on):
            warn_of_idle(config, {"adapter": f"adapters go on from {', '.join(going_on)}, with their settings"})
        if structure == "merge_then_new" and going_on:
            kind = bank.entry(going_on[0]).config.kind
    if structure == "merge_then_new" and len(config.tasks) > 1:
        if kind != "lora":
            raise UserError(
                f"the structure 'merge_then_new' folds each adapter into the base, and a {kind} is nonlinear; expected a LoRA. Use "
                "'per_task' or 'shared'"
            )
        half = sorted({str(p.dtype).removeprefix("torch.") for p in base.parameters() if p.element_size() < 4})
        if half:
            raise UserError(
                f"{name} has {' and '.join(half)} weights, into which an adapter can't be folded without changing what the policy "
                "does; expected float32 for 'merge_then_new'. Use 'per_task' or 'shared', whose adapters stay apart"
            )


def _going_on(config: ContinualConfig, bank: AdapterBank, suite: Suite) -> list[str]:
    """Adapters of the base from which the tasks' go on.

    Raises:
        UserError: a task's adapter is there and isn't what acts on the task, or is frozen.
    """
    if config.structure == "per_task":
        _complete(bank, suite)
        serving = _serving(bank, suite)
        acting = {task: serving[suite.task(task).instruction] for task in config.tasks}
    else:
        acting = {config.tasks[0]: bank.active}
    for task, acts in acting.items():
        name = adapter_name(config, task)
        if name not in bank.names:
            continue
        if acts != name:
            raise UserError(
                f"{config.train.policy} has an adapter {name!r}, and acts on {task} by {repr(acts) if acts else 'its base'}; expected "
                "that one, since it would be trained. Take it away, or give it the task's instruction and let it act"
            )
        # Refuses a frozen one.
        bank.activate(name, training=True)
    return list(dict.fromkeys(parent for parent in acting.values() if parent is not None))


def prepare(config: ContinualConfig, policy: Policy, suite: Suite, task: str, number: int) -> None:
    """Lets exactly the adapter that learns `task`, the run's task `number` from 1, be trained.

    A new adapter goes on from what acted on the task until now: an adapter of the given policy, or the base.
    """
    bank = AdapterBank(policy) if number == 1 and policy.adapter_bank is None else bank_of(policy)
    name, instruction = adapter_name(config, task), suite.task(task).instruction
    if config.structure == "per_task":
        _complete(bank, suite)
    last = adapter_name(config, config.tasks[number - 2]) if number > 1 else None
    if config.structure == "merge_then_new" and last is not None:
        fold(bank, last, first_observations(suite))
    if name not in bank.names:
        parent = _serving(bank, suite)[instruction] if config.structure == "per_task" else bank.active
        if last is not None and config.start_from == "previous":
            parent = last
        bank.add(name, None if parent else config.adapter, start_from=parent, seed=config.train.seed)
    bank.activate(name, training=True)
    if config.structure == "merge_then_new":
        # They belong to the base as it was before the fold to come.
        for other in [other for other in bank.names if other != name]:
            bank.remove(other)
    bank.assign(name, [instruction])


def as_deployed(config: ContinualConfig, policy: Policy, suite: Suite) -> Policy:
    """The policy as it would be used.

    With `per_task` each row has its own task's adapter, or the base while there is none; otherwise what was trained
    last serves all tasks.
    """
    policy.compute_in(config.train.precision)
    if config.structure != "per_task" or policy.adapter_bank is None:
        return policy
    bank = bank_of(policy)
    _complete(bank, suite)
    return RoutedPolicy(bank, TaskRouter(_serving(bank, suite)))


def _complete(bank: AdapterBank, suite: Suite) -> None:
    """An active adapter that is said to be for no task is for all that have none."""
    if bank.active is not None and not bank.entry(bank.active).instructions:
        bank.assign(bank.active, [text for text, name in _serving(bank, suite).items() if name is None])


def _serving(bank: AdapterBank, suite: Suite) -> dict[str, str | None]:
    """Instruction -> its adapter, or None for the base."""
    routes: dict[str, str | None] = {task.instruction: None for task in suite.tasks}
    return routes | {text: name for name in bank.names for text in bank.entry(name).instructions}


def first_observations(suite: Suite) -> ObservationBatch:
    """First observations of a few train states of every task."""
    environment = suite.make_environment()
    seen, instructions = [], []
    try:
        for task in suite.tasks:
            for state in suite.initial_states(task, "train")[:FOLD_STATES]:
                seen.append(environment.reset(task, state))
                instructions.append(task.instruction)
    finally:
        environment.close()
    return ObservationBatch.stacked(seen, instructions)
