"""Planted faults: does a test notice each one? `python -m benchmarks.experiments.planted_faults`, about fifteen minutes on one core.

Every fault of `planted_faults.toml` is planted alone in a clone of the last commit, where its tests then run; before, they pass without it. Writes
docs/results/planted_faults.json and .md. With words, only the faults whose file or sentence has one of them are tried, and nothing is written.
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
import tyro

# Imported for what it imports: a forked test process then has torch and transformers already, and reads this package from the clone.
import simplevla.recipes.demo  # noqa: F401
from benchmarks.support.machine import this_machine
from simplevla import checked
from simplevla.checked import from_dict
from simplevla.errors import UserError
from simplevla.evaluation.provenance import commit
from simplevla.storage import write_atomically, write_json

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
PASSED, FAILED = 0, 1
"""Exit codes of pytest."""


@checked.dataclass(frozen=True, kw_only=True)
class Fault:
    """A piece of code, and the wrong one that takes its place."""

    file: str
    """Under src/simplevla."""
    text: str
    becomes: str
    wrong: str
    """Consequence of the fault, one sentence without its stop."""
    tests: str
    """Files or names of tests that should notice, with blanks between them."""

    @property
    def package(self) -> str:
        return self.file.partition("/")[0].removesuffix(".py")

    def planted(self, source: str) -> str:
        """`source` with the fault.

        Raises:
            UserError: the text isn't there exactly once.
        """
        if source.count(self.text) != 1:
            raise UserError(
                f"the fault {self.wrong!r}: {self.text!r} stands {source.count(self.text)} times in {self.file}; expected once. "
                "Choose another text in planted_faults.toml"
            )
        return source.replace(self.text, self.becomes)


@dataclass(frozen=True)
class Arguments:
    """Which faults are tried."""

    words: tyro.conf.Positional[tuple[str, ...]] = field(default=())


def main(arguments: Arguments) -> None:
    faults = read_faults()
    if arguments.words:
        faults = [fault for fault in faults if any(word in f"{fault.file} {fault.wrong}" for word in arguments.words)]
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        source = clone / "src" / "simplevla"
        for fault in faults:
            fault.planted((source / fault.file).read_text())
        tests = list(dict.fromkeys(test for fault in faults for test in fault.tests.split()))
        code, said = run_tests(clone, tests)
        if code != PASSED:
            raise UserError(f"tests fail without any fault; mend them first:\n{said}")
        rows = [{"package": fault.package, "fault": fault.wrong, "caught_by": catch(fault, clone)} for fault in faults]
    if arguments.words:
        return
    result = {"commit": commit(), "machine": this_machine(), "faults": rows}
    write_json(RESULTS / "planted_faults.json", result)
    write_atomically(RESULTS / "planted_faults.md", page(result).encode())


def read_faults() -> list[Fault]:
    text = Path(__file__).with_suffix(".toml").read_text()
    return [from_dict(Fault, values, "planted_faults.toml") for values in tomllib.loads(text)["fault"]]


def catch(fault: Fault, clone: Path) -> str | None:
    """The first test that fails with `fault`; None if it survives."""
    file = clone / "src" / "simplevla" / fault.file
    whole = file.read_text()
    file.write_text(fault.planted(whole))
    code, said = run_tests(clone, fault.tests.split())
    file.write_text(whole)
    found = re.search(r"^(?:FAILED|ERROR) (tests/[^\s\[]+)", said, re.MULTILINE)
    if code not in (PASSED, FAILED) or (code == FAILED and found is None):
        raise UserError(f"the fault {fault.wrong!r} keeps tests from running, so that nobody could miss it:\n{said}")
    caught_by = found[1] if found else None
    print(f"{fault.package:<16} {fault.wrong}: {f'caught by {caught_by}' if found else 'SURVIVED'}", flush=True)
    return caught_by


def run_tests(clone: Path, tests: list[str]) -> tuple[int, str]:
    """Exit code and end of the output of pytest in the clone, up to the first failure."""
    log = clone.with_name("log")
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        for number in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.chdir(clone)
        os.environ |= {"PYTHONPATH": str(clone / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(clone / "src"))
        for name in [name for name in sys.modules if name.partition(".")[0] in ("simplevla", "benchmarks")]:
            del sys.modules[name]
        # Or processes that tests spawn would run this file.
        sys.modules["__main__"] = ModuleType("__main__")
        code = pytest.main(["-x", "-q", "-n0", "-p", "no:cacheprovider", *tests])
        import simplevla

        os._exit(code if Path(simplevla.__file__).is_relative_to(clone) else 5)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")[-3000:]


def page(result: dict) -> str:
    rows = result["faults"]
    caught = sum(row["caught_by"] is not None for row in rows)
    packages = len({row["package"] for row in rows})
    lines = [
        "# Planted faults",
        "",
        f"Tests notice {caught} of {len(rows)} faults that were planted one at a time in {packages} packages and files.",
        "",
        "| package | fault | caught by |",
        "|---|---|---|",
        *(f"| {row['package']} | {row['fault']} | {name_of(row['caught_by'])} |" for row in rows),
        "",
        f"Command: `python -m benchmarks.experiments.planted_faults`. Machine: {result['machine']}. Commit {result['commit']}. The faults' texts are in",
        "`benchmarks/experiments/planted_faults.toml`; they were chosen from the code, and what survived got a test.",
    ]
    return "\n".join(lines) + "\n"


def name_of(test: str | None) -> str:
    """A test as file and name; survivors stand out."""
    return "**nothing**" if test is None else f"`{test.removeprefix('tests/')}`"


if __name__ == "__main__":
    main(tyro.cli(Arguments))
