"""The check of a suite."""

from dataclasses import dataclass, field

from simplevla.commands.arguments import EXIT_PROBLEMS, take_name
from simplevla.commands.help import read_arguments
from simplevla.config import SuiteConfig
from simplevla.errors import UserError, printable


@dataclass(frozen=True, kw_only=True)
class CheckSuiteArguments:
    """Finds mistakes in a suite: simplevla check-suite NAME|package.module:factory."""

    suite: SuiteConfig = field(default_factory=SuiteConfig)


def check_suite_command(arguments: list[str]) -> int:
    name, rest = take_name(arguments)
    config = SuiteConfig() if name is None else SuiteConfig(name=name)
    default = CheckSuiteArguments(suite=config)
    parsed = read_arguments(CheckSuiteArguments, "check-suite", rest, default)

    from simplevla.suites.base import EpisodeBroken
    from simplevla.suites.checker import check_suite
    from simplevla.suites.registry import make_suite

    try:
        problems = check_suite(make_suite(parsed.suite))
    except EpisodeBroken as error:
        raise UserError(f"{parsed.suite.name} isn't checked to the end: {error}") from error
    for problem in problems:
        print(printable(problem))
    print(f"{parsed.suite.name}: {len(problems)} problems found")
    return EXIT_PROBLEMS if problems else 0
