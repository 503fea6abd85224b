"""The benchmarks, which are part of the repository alone."""

import os
import sys
from pathlib import Path

from simplevla.errors import UserError


def bench_command(arguments: list[str]) -> int:
    script = Path(__file__).parents[3] / "benchmarks" / "bench.py"
    if not script.is_file():
        raise UserError(
            f"no {script}: the benchmarks are part of the repository, not of the package. "
            "Run this from a checkout that was installed with: pip install -e ."
        )
    sys.stdout.flush()
    # In this very process, so that nothing of it is left when it is killed.
    os.execv(sys.executable, [sys.executable, str(script), *arguments])
