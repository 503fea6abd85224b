"""Lets simulators die, hang and lie in `train`, `demos` and `eval`, and looks at what comes of it."""

import dataclasses
import re
import shutil
from pathlib import Path

from benchmarks.experiments.reliability_commands import (
    BY_THE_CLOCK,
    TASK,
    Case,
    Commands,
    cases,
    differences,
    end_of,
    prepare,
    remove,
)
from benchmarks.experiments.reliability_kills import finish
from benchmarks.experiments.reliability_tally import Tally

SUITE = "benchmarks.experiments.faulty_suite:make"
HANG_S = 2.0
"""Silence after which a worker hangs, in these runs."""
REPAIRED = (
    *("kill 5", "exit 5", "segfault 5", "hang 5", "hold 5", "raise 5", "kill 3 9"),
    *("build_exit 1 2", "exit 5; build_exit 2 3", "kill 1 6; build_kill 3", "raise 5; build_raise 2"),
)
"""Faults after which everything goes on, to the same end."""
REFUSED = (
    *("nan 1", "nan 2", "shape 2", "success 5"),
    *("kill always", "raise always", "build_raise 1", "build_exit always", "exit 5; build_exit 2 3 4"),
)
"""Faults that end the command with one clear error."""
BY_FAULTS = re.compile(BY_THE_CLOCK.pattern + "|(eval_)?(errors|last_error)|retries|worker_restarts|broken|attempts")


def faulty_cases(policy: Path, dataset: Path) -> list[Case]:
    """The commands that simulate, with the suite whose faults come from outside."""
    of = {case.name: case for case in cases(policy, dataset)}
    demos, train = of["demos"], of["train"]
    suite = ["--suite.name", SUITE, "--suite.tasks", TASK]
    # One environment in a worker: the second one that is built is a replacement's.
    rollout = ["--rollout.chunk-timeout-s", str(HANG_S), "--rollout.workers", "1", "--rollout.slots-per-worker", "1"]
    evaluate = ["eval", "--policy", str(policy), *suite, "--episodes-per-task", "6", *rollout]
    return [
        dataclasses.replace(train, arguments=(*_with_suite(train.arguments), *rollout)),
        dataclasses.replace(demos, arguments=_with_suite(demos.arguments), order={"hang_s": HANG_S}),
        Case("eval", tuple(evaluate), flag="--out", resumes=False, file="result.json"),
    ]


def _with_suite(arguments: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(SUITE if argument == "tabletop" else argument for argument in arguments)


def worker_faults(work: Path) -> Tally:
    """Every fault in every command; after an error the same command goes on without the fault."""
    tally, counts = Tally(), work / "faults"
    with Commands(work) as commands:
        for case in faulty_cases(*prepare(commands, work)):
            folder = work / "faulty" / case.name / "run"

            def begin(faults: str, folder: Path = folder, case: Case = case) -> Case:
                remove(folder)
                folder.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(counts, ignore_errors=True)
                counts.mkdir()
                environment = {"FAULTS": faults, "FAULTS_FOLDER": str(counts)}
                return dataclasses.replace(case, order={**case.order, "env": environment})

            calm = begin("")
            ended = commands.run(calm.command(folder), **calm.order)
            assert ended.code == 0, f"{case.name} can't even run: {ended.errors}"
            expected = end_of(folder, BY_FAULTS)
            for faults in (*REPAIRED, *REFUSED):
                faulty = begin(faults)
                ended = commands.run(faulty.command(folder), **faulty.order)
                problems = tally.look_at(ended)
                if faults in REPAIRED:
                    problems += _right_end(
                        ended.code, ended.last, differences(end_of(folder, BY_FAULTS), expected), tally
                    )
                else:
                    errors = [line for line in ended.errors.splitlines() if line.startswith("error: ")]
                    if ended.code != 0 and len(errors) == 1:
                        problems += finish(commands, calm, folder, expected, tally, BY_FAULTS)
                    else:
                        problems.append(f"exit code {ended.code}, {len(errors)} errors; expected one: {ended.last}")
                tally.add(
                    f"{case.name}, {'repaired' if faults in REPAIRED else 'refused'}",
                    [faults, *problems] if problems else [],
                )
    return tally


def _right_end(code: int | None, last: str, wrong: list[str], tally: Tally) -> list[str]:
    if code == 0 and not wrong:
        return []
    tally.results_lost += 1
    return [f"exit code {code}, {', '.join(wrong[:5])} differ: {last}"]
