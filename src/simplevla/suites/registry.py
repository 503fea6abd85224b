"""From a suite's name to the suite. Each suite's stack is imported only when that suite is asked for."""

import difflib
import importlib
from collections.abc import Callable

from simplevla.config import SuiteConfig
from simplevla.suites.base import Suite

FACTORIES: dict[str, tuple[str, str]] = {
    "tabletop": ("simplevla.suites.tabletop.suite:make", ""),
    "libero_spatial": ("simplevla.suites.libero.suite:make", "libero"),
    "libero_object": ("simplevla.suites.libero.suite:make", "libero"),
    "libero_goal": ("simplevla.suites.libero.suite:make", "libero"),
    "libero_10": ("simplevla.suites.libero.suite:make", "libero"),
    "libero_90": ("simplevla.suites.libero.suite:make", "libero"),
    "metaworld": ("simplevla.suites.metaworld.suite:make", "metaworld"),
}
"""Name -> (module:factory, the extra that brings its stack)."""


def make_suite(config: SuiteConfig) -> Suite:
    """Build the suite that `config` names, restricted to `config.tasks` where given.

    Raises:
        ValueError: unknown suite or task, with near names.
        ImportError: the suite's stack is not installed, with the extra that brings it.
    """
    if ":" in config.name:
        location, extra = config.name, ""
    elif config.name in FACTORIES:
        location, extra = FACTORIES[config.name]
    else:
        near = difflib.get_close_matches(config.name, FACTORIES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"Unknown suite {config.name!r}.{hint} List them: simplevla list suites. "
            "A suite of your own is named package.module:factory."
        )
    suite = _load(location, extra)(config)
    if config.tasks:
        suite.tasks = tuple(suite.task(name) for name in config.tasks)
    return suite


def _load(location: str, extra: str) -> Callable[[SuiteConfig], Suite]:
    module_name, _, attribute = location.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        remedy = f"install it with: pip install 'simplevla-rl[{extra}]'" if extra else "is it on PYTHONPATH?"
        raise ImportError(f"suite {location!r} can't be imported ({error}); {remedy}") from error
    factory = getattr(module, attribute, None)
    if factory is None:
        raise ValueError(f"module {module_name!r} has no {attribute!r}; expected a factory SuiteConfig -> Suite")
    return factory
