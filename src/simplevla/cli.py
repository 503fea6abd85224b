"""The command line: picks a command, and turns what it raises into an exit code."""

import importlib.abc
import itertools
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

from simplevla import __version__
from simplevla.commands.adapters import adapters_command
from simplevla.commands.arguments import nearest
from simplevla.commands.bench import bench_command
from simplevla.commands.exports import export_command
from simplevla.commands.imports import import_command
from simplevla.commands.listing import list_command
from simplevla.commands.planning import plan_command
from simplevla.commands.push import push_command
from simplevla.commands.results import compare_command, evaluate_command, novelty_command, report_command
from simplevla.commands.runs import continual_command, demo_command, demos_command, sft_command, train_command
from simplevla.commands.serve import serve_command
from simplevla.commands.suites import check_suite_command
from simplevla.errors import UserError, one_line
from simplevla.record import EXIT_TERMINATED, Terminated
from simplevla.storage import ADVICE

EXIT_ERROR = 2
EXIT_FAULT = 4
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code.

    0 done, 1 problems found, 2 error, 3 no learning signal, 4 a fault of the program.

    A user's error is one line; a fault keeps its traceback, and so does every error with SIMPLEVLA_DEBUG=1.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "--version"):
        print(f"simplevla {__version__}" if "--version" in arguments else _usage())
        return 0
    if sys.stderr.isatty() and "torch" not in sys.modules:
        sys.meta_path.insert(0, _SaysLoading())
    debug = os.environ.get("SIMPLEVLA_DEBUG") == "1"
    if not debug:
        warnings.formatwarning = lambda message, *_: f"warning: {one_line(str(message))}\n"
    try:
        name = arguments[0]
        if name not in COMMANDS:
            raise UserError(f"unknown command {name!r}.{nearest(name, COMMANDS)} Commands: {', '.join(COMMANDS)}")
        return COMMANDS[name][0](arguments[1:])
    except BrokenPipeError:
        # Nobody reads on, as with `| head`; the interpreter would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except (UserError, OSError) as error:
        if debug:
            raise
        _print_error(_said(error) if isinstance(error, OSError) else str(error))
        return EXIT_ERROR
    except Exception:
        traceback.print_exc()
        return EXIT_FAULT
    except (KeyboardInterrupt, Terminated) as end:
        terminated = isinstance(end, Terminated)
        _print_error(f"{'terminated' if terminated else 'interrupted'}; {going_on(arguments)}")
        return EXIT_TERMINATED if terminated else EXIT_INTERRUPTED


class _SaysLoading(importlib.abc.MetaPathFinder):
    """Tells a terminal why nothing is to be seen for seconds, when a command begins to import PyTorch."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "torch":
            sys.meta_path.remove(self)
            print("loading PyTorch ...", file=sys.stderr, flush=True)


def going_on(arguments: Sequence[str]) -> str:
    """The command that goes on where this one was interrupted."""
    given = dict(itertools.pairwise(arguments))
    given |= dict(argument.split("=", 1) for argument in arguments if argument.startswith("--") and "=" in argument)
    run = given.get("--resume") or given.get("--run")
    if arguments[0] in ("sft", "train", "continual") and run:
        return f"it goes on with: simplevla {arguments[0]} --resume {run}"
    return "the same command goes on with what is finished, or begins again"


def _usage() -> str:
    rows = "\n".join(f"  {name:<12} {text}" for name, (_, text) in COMMANDS.items())
    return f"usage: simplevla COMMAND [ARGUMENTS]\n\n{rows}\n\nsimplevla COMMAND --help lists a command's arguments."


def _said(error: OSError) -> str:
    """The file, what went wrong, and what to do; errors of our own say so already."""
    if error.errno is None:
        return str(error)
    advice = ADVICE.get(error.errno, "Check the path, then run again")
    return f"{error.filename or 'a file'}: {error.strerror}. {advice}."


def _print_error(message: str) -> None:
    """One line on stderr, red where that is a terminal."""
    line = f"error: {one_line(message)}"
    print(f"\033[31m{line}\033[0m" if sys.stderr.isatty() else line, file=sys.stderr)


COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "demos": (demos_command, "generate demonstrations with a suite's scripted expert"),
    "sft": (sft_command, "supervised fine-tuning on demonstrations"),
    "train": (train_command, "improve a supervised policy by reinforcement learning"),
    "plan": (plan_command, "say whether a training recipe fits a machine, and how long an update takes there"),
    "continual": (continual_command, "train tasks one after another, each with its own adapter or with a shared one"),
    "eval": (evaluate_command, "measure closed-loop success on held-out initial states"),
    "compare": (compare_command, "compare two evaluations on the same initial states"),
    "report": (report_command, "write one HTML page about a run"),
    "novelty": (novelty_command, "say what RL changed in behaviour, compared with the demonstrations"),
    "adapters": (adapters_command, "list, show, export, add, merge or route the adapters of a policy"),
    "import": (import_command, "convert a TinyVLA, OpenVLA-OFT or SmolVLA checkpoint, or HDF5 demonstrations"),
    "export": (export_command, "write a SmolVLA as a folder that LeRobot loads"),
    "push": (push_command, "upload a policy to the Hugging Face hub, with a page about it"),
    "serve": (serve_command, "serve a policy over a websocket, for robots and for evaluations elsewhere"),
    "check-suite": (check_suite_command, "find mistakes in a suite of your own"),
    "demo": (demo_command, "run the main job on the embedded suite, from nothing to a report"),
    "bench": (bench_command, "measure rollouts and updates side by side with how others do them"),
    "list": (list_command, "list suites, recipes or policies"),
}

if __name__ == "__main__":
    sys.exit(main())
