"""Suites by name; each suite's stack is imported only when that suite is asked for."""

import difflib
import importlib
import sys
from collections.abc import Callable

from simplevla.config import SuiteConfig
from simplevla.errors import UserError
from simplevla.suites.base import Suite
from simplevla.types import SPLITS

FACTORIES: dict[str, tuple[str, str]] = {
    "tabletop": ("simplevla.suites.tabletop.suite:make", ""),
    "tabletop_pushcut": ("simplevla.suites.tabletop.suite:make", ""),
    "libero_spatial": ("simplevla.suites.libero.suite:make", "libero"),
    "libero_object": ("simplevla.suites.libero.suite:make", "libero"),
    "libero_goal": ("simplevla.suites.libero.suite:make", "libero"),
    "libero_10": ("simplevla.suites.libero.suite:make", "libero"),
    "libero_90": ("simplevla.suites.libero.suite:make", "libero"),
    **{
        f"libero_{base}_{kind}": ("simplevla.suites.libero.suite:make", "libero")
        for base in ("spatial", "object", "goal", "10")
        for kind in ("swap", "object", "lan", "task")
    },
    "metaworld": ("simplevla.suites.metaworld.suite:make", "metaworld"),
    "maniskill": ("simplevla.suites.maniskill.suite:make", "maniskill"),
}
"""Name -> (module:factory, the extra that brings its stack)."""
SHOWN = 3
"""Problems that one error names."""


def make_suite(config: SuiteConfig) -> Suite:
    """Builds the suite that `config` names, restricted to `config.tasks` where given.

    Raises:
        UserError: unknown suite or task, with near names; a suite with which counts of episodes would be wrong; its
            stack is not installed, with the extra that brings it; an interpreter `config.python` that can't run it.
    """
    if config.python:
        from simplevla.suites.elsewhere import SuiteElsewhere

        return SuiteElsewhere(config)
    if ":" in config.name:
        location, extra = config.name, ""
    elif config.name in FACTORIES:
        location, extra = FACTORIES[config.name]
    else:
        near = difflib.get_close_matches(config.name, FACTORIES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"Unknown suite {config.name!r}.{hint} List them: simplevla list suites. "
            "A suite of your own is named package.module:factory."
        )
    factory = _load(location, extra)
    try:
        suite = factory(config)
    except (UserError, OSError):
        raise
    except Exception as error:  # anybody's code
        raise UserError(f"suite {location!r}: its factory raised {_said(error)}") from error
    if not isinstance(suite, Suite):
        raise UserError(f"suite {location!r}: its factory made a {type(suite).__name__}; expected a Suite")
    suite.all_tasks = suite.tasks
    if config.tasks:
        suite.tasks = tuple(suite.task(name) for name in config.tasks)
    _require_countable(suite)
    return suite


def _require_countable(suite: Suite) -> None:
    """Refuses what would count an episode twice, call trained states held out, or can't be written beside a result."""
    names = [task.name for task in suite.tasks]
    problems = [
        f"task {name!r} is there {names.count(name)} times" for name in dict.fromkeys(names) if names.count(name) > 1
    ]
    if not names:
        problems.append("it has no tasks")
    for task in suite.tasks:
        states = {split: list(suite.initial_states(task, split)) for split in SPLITS}
        for split, numbers in states.items():
            strange = [number for number in numbers if type(number) is not int]
            if strange:
                problems.append(
                    f"{split} initial states of task {task.name!r} are of type {type(strange[0]).__name__}; expected int"
                )
            if len(set(numbers)) < len(numbers):
                problems.append(
                    f"{split} initial states of task {task.name!r} are {len(numbers)}, of them {len(set(numbers))} different"
                )
        if shared := sorted(set(states["train"]) & set(states["test"])):
            problems.append(
                f"{len(shared)} initial states of task {task.name!r} are train and test states, {shared[0]} for example"
            )
    problems += [
        f"protocol[{key!r}] is of type {type(value).__name__}; expected text, int or float"
        for key, value in suite.protocol.items()
        if not isinstance(value, str | int | float)
    ]
    if problems:
        more = f", and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(
            f"suite {suite.name!r}: {'; '.join(problems[:SHOWN])}{more}. Expected tasks of different names, each initial state once "
            "and in one split. Mend the suite, or the names in suite.tasks"
        )


def missing_module(error: BaseException | None) -> str | None:
    """Package whose absence led to `error`, if that is what did."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            return error.name.partition(".")[0]
        error = error.__cause__
    return None


def _said(error: Exception) -> str:
    return f"{type(error).__name__} ({error}). SIMPLEVLA_DEBUG=1 shows where"


def _load(location: str, extra: str) -> Callable[[SuiteConfig], Suite]:
    module_name, _, attribute = location.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        missing = missing_module(error)
        if extra:
            remedy = f"install it with: pip install 'simplevla[{extra}]'"
        elif missing is None or missing == module_name.partition(".")[0]:
            remedy = "is it on PYTHONPATH?"
        else:
            remedy = f"it needs {missing}, which {sys.executable} hasn't got"
        raise UserError(f"suite {location!r} can't be imported ({error}); {remedy}") from error
    except Exception as error:  # anybody's code, or no name of a module
        raise UserError(f"suite {location!r} can't be imported: it raised {_said(error)}") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise UserError(f"module {module_name!r} has no {attribute!r}; expected a factory SuiteConfig -> Suite")
    return factory
