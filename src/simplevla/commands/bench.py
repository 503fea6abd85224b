"""The benchmarks, which are part of the repository alone."""

import os
import sys
from pathlib import Path

from simplevla.commands.help import examples
from simplevla.errors import UserError


def bench_command(arguments: list[str]) -> int:
    checkout = Path(__file__).parents[3]
    if not (checkout / "benchmarks").is_dir():
        raise UserError(
            f"no {checkout / 'benchmarks'}: the benchmarks are part of the repository, not of the package. "
            "Run this from a checkout that was installed with: pip install -e ."
        )
    if {"-h", "--help"} & set(arguments):
        print(examples("bench"))
    sys.stdout.flush()
    # In this very process, so that nothing of it is left when it is killed.
    os.chdir(checkout)
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.speed.bench", *arguments])
