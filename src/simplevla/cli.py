"""The command line: parses, then calls one room. Rooms are imported only by the command that needs them."""

import logging
import os
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from simplevla.commands.arguments import EXIT_PROBLEMS, nearest, take_name
from simplevla.commands.checkpoints import import_command
from simplevla.commands.planning import plan_command
from simplevla.commands.results import compare_command, evaluate_command, report_command
from simplevla.commands.runs import continual_command, demos_command, sft_command, train_command
from simplevla.config import SuiteConfig
from simplevla.errors import UserError

EXIT_ERROR = 2
EXIT_FAULT = 4
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code.

    0 done, 1 problems found, 2 error, 3 no learning signal, 4 a fault of the program.

    A user's error is one line; a fault keeps its traceback, and so does every error with SIMPLEVLA_DEBUG=1.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    debug = os.environ.get("SIMPLEVLA_DEBUG") == "1"
    if not debug:
        warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
        # Where torchao is installed transformers imports it, and it complains of CUDA libraries that a CPU build lacks.
        for name in ("torchao", "torch.utils._pytree"):
            logging.getLogger(name).setLevel(logging.ERROR)
    try:
        name = arguments[0]
        if name not in COMMANDS:
            raise UserError(f"unknown command {name!r}.{nearest(name, COMMANDS)} Commands: {', '.join(COMMANDS)}")
        return COMMANDS[name][0](arguments[1:])
    except (UserError, OSError) as error:
        if debug:
            raise
        _print_error(str(error))
        return EXIT_ERROR
    except Exception:
        traceback.print_exc()
        return EXIT_FAULT
    except KeyboardInterrupt:
        _print_error("interrupted; a training run goes on with: simplevla train --resume RUN")
        return EXIT_INTERRUPTED


def _usage() -> str:
    rows = "\n".join(f"  {name:<12} {text}" for name, (_, text) in COMMANDS.items())
    return f"usage: simplevla COMMAND [ARGUMENTS]\n\n{rows}\n\nsimplevla COMMAND --help lists a command's arguments."


def _print_error(message: str) -> None:
    """One line on stderr, red where that is a terminal."""
    line = "error: " + " ".join(message.split())
    print(f"\033[31m{line}\033[0m" if sys.stderr.isatty() else line, file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class CheckSuiteArguments:
    """Find mistakes in a suite: simplevla check-suite NAME|package.module:factory."""

    suite: SuiteConfig = field(default_factory=SuiteConfig)


def _check_suite(arguments: list[str]) -> int:
    name, rest = take_name(arguments)
    config = SuiteConfig() if name is None else SuiteConfig(name=name)
    default = CheckSuiteArguments(suite=config)
    parsed = tyro.cli(CheckSuiteArguments, prog="simplevla check-suite", args=rest, default=default)

    from simplevla.suites.checker import check_suite
    from simplevla.suites.registry import make_suite

    problems = check_suite(make_suite(parsed.suite))
    for problem in problems:
        print(problem)
    print(f"{parsed.suite.name}: {len(problems)} problems found")
    return EXIT_PROBLEMS if problems else 0


def _list(arguments: list[str]) -> int:
    kinds = {"suites": _suite_names, "recipes": _recipe_names, "policies": _policy_names}
    if len(arguments) != 1 or arguments[0] not in kinds:
        got = " ".join(arguments) or "nothing"
        near = nearest(arguments[0], kinds) if arguments else ""
        raise UserError(f"list what? Got {got!r}; expected one of: {', '.join(kinds)}.{near}")
    print("\n".join(kinds[arguments[0]]()))
    return 0


def _suite_names() -> list[str]:
    from simplevla.suites.registry import FACTORIES

    return list(FACTORIES)


def _recipe_names() -> list[str]:
    from simplevla import recipes

    kinds: dict[str, Iterable[str]] = {
        "demos": recipes.DEMOS,
        "sft": recipes.SFT,
        "train": recipes.TRAIN,
        "continual": recipes.CONTINUAL,
    }
    return [f"{command:<6} {name}" for command, known in kinds.items() for name in known]


def _policy_names() -> list[str]:
    from simplevla.policies.registry import listed

    return listed()


def _adapters(arguments: list[str]) -> int:
    from simplevla.adapters.commands import main as run

    run(arguments)
    return 0


@dataclass(frozen=True, kw_only=True)
class DemoArguments:
    """The main job from nothing: demonstrations, SFT, RL, evaluation and report on the embedded suite."""

    run: Path = Path("runs/demo")
    """Folder for everything; an interrupted demo goes on where it stopped."""
    seed: int = 0


def _demo(arguments: list[str]) -> int:
    parsed = tyro.cli(DemoArguments, prog="simplevla demo", args=arguments)

    from simplevla.recipes.demo import demo

    demo(parsed.run, parsed.seed)
    return 0


def _bench(arguments: list[str]) -> int:
    script = Path(__file__).parents[2] / "benchmarks" / "bench.py"
    if not script.is_file():
        raise UserError(
            f"no {script}: the benchmarks are part of the repository, not of the package. "
            "Run this from a checkout that was installed with: pip install -e ."
        )
    return subprocess.run([sys.executable, str(script), *arguments]).returncode


COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "demos": (demos_command, "generate demonstrations with a suite's scripted expert"),
    "sft": (sft_command, "supervised fine-tuning on demonstrations"),
    "train": (train_command, "improve a supervised policy by reinforcement learning"),
    "plan": (plan_command, "say whether a training recipe fits a machine, and how long an update takes there"),
    "continual": (continual_command, "train tasks one after another, each with its own adapter or with a shared one"),
    "eval": (evaluate_command, "measure closed-loop success on held-out initial states"),
    "compare": (compare_command, "compare two evaluations on the same initial states"),
    "report": (report_command, "write one HTML page about a run"),
    "adapters": (_adapters, "list, show, export, add, merge or route the adapters of a policy"),
    "import": (import_command, "convert a TinyVLA or OpenVLA-OFT checkpoint to a policy folder"),
    "check-suite": (_check_suite, "find mistakes in a suite of your own"),
    "demo": (_demo, "run the main job on the embedded suite, from nothing to a report"),
    "bench": (_bench, "measure rollouts and updates side by side with how others do them"),
    "list": (_list, "list suites, recipes or policies"),
}

if __name__ == "__main__":
    sys.exit(main())
