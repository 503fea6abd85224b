"""Commands on the results of runs: evaluation, comparison, report."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from simplevla.checked import Count
from simplevla.commands.arguments import EXIT_PROBLEMS, UNPREFIXED, recipe_called, require_consent, take_name
from simplevla.commands.help import read_arguments
from simplevla.config import EvalConfig, Precision, RolloutConfig, SuiteConfig, TrainConfig
from simplevla.errors import UserError, printable
from simplevla.terminal import Console


@dataclass(frozen=True, kw_only=True)
class EvalArguments:
    """Measures closed-loop success: simplevla eval [RECIPE] --policy DIR [--suite.name NAME] [--split test].

    With a recipe of `simplevla train`, suite, rollout, device and precision are its own, and published successes are
    compared.
    """

    config: Annotated[EvalConfig, UNPREFIXED] = field(default_factory=EvalConfig)
    policy: str
    """Folder of a saved policy, for example RUN/policy, or hf://OWNER/NAME on the hub."""
    adapter: str = ""
    """Adapter of the policy that acts: its name, or `routed` for the one nearest to each instruction; empty: the one
    that was active when it was saved."""
    suite: SuiteConfig = field(default_factory=SuiteConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    out: Path | None = None
    """New JSON file for the result; `simplevla compare` reads two of them."""
    overwrite: bool = False
    """Replaces the file that `out` names."""
    device: str = "cpu"
    """Device on which the policy computes."""
    precision: Precision = "float32"
    """Precision of the policy's products, as in `simplevla train`."""


def evaluate_command(arguments: list[str]) -> int:
    from simplevla import recipes
    from simplevla.recipes.openvla_oft import PUBLISHED
    from simplevla.recipes.parity import parity
    from simplevla.suites.registry import make_suite

    name, rest = take_name(arguments)
    recipe = recipe_called(name, recipes.TRAIN, TrainConfig)
    default = EvalArguments(
        policy=tyro.MISSING,
        suite=recipe.suite,
        rollout=recipe.rollout,
        device=recipe.device,
        precision=recipe.precision,
    )
    parsed = read_arguments(EvalArguments, "eval", rest, default)

    from simplevla.evaluation.evaluate import evaluate
    from simplevla.evaluation.result import result_table, write_result
    from simplevla.storage import require_writable

    require_writable(parsed.out, parsed.overwrite)
    result = evaluate(
        parsed.policy,
        parsed.suite,
        parsed.rollout,
        parsed.config,
        parsed.device,
        parsed.precision,
        adapter=parsed.adapter,
    )
    # Seen first, in case that it can't be written after all.
    Console().print(result_table(result))
    if parsed.out is not None:
        write_result(parsed.out, result)
    if result.errors.counts:
        given_up = "".join(f"\n  {task}, initial state {state}: {reason}" for task, state, reason in result.broken)
        print(printable(f"the environment broke: {result.errors}\nepisodes given up: {result.env_errors}{given_up}"))
        print(printable(f"the last error was:\n{result.errors.last_error}"))
    if name in PUBLISHED and result.as_saved:
        print(parity(name, result, make_suite(recipe.suite)))
    if result.unmeasured:
        print(f"no valid episode of {', '.join(result.unmeasured)}: the overall rate is without them")
        return EXIT_PROBLEMS
    return 0


@dataclass(frozen=True, kw_only=True)
class CompareArguments:
    """Compares two results of `simplevla eval` on the same initial states (McNemar's exact test)."""

    a: tyro.conf.Positional[Path]
    """Result of the first policy, by `simplevla eval --out`."""
    b: tyro.conf.Positional[Path]
    """Result of the second one."""
    out: Path | None = None
    """New JSON file for the comparison."""
    overwrite: bool = False
    """Replaces the file that `out` names."""


def compare_command(arguments: list[str]) -> int:
    parsed = read_arguments(CompareArguments, "compare", arguments)

    from simplevla.evaluation.compare import compare_files, comparison_table
    from simplevla.storage import require_writable, write_json

    require_writable(parsed.out, parsed.overwrite)
    comparison = compare_files(parsed.a, parsed.b)
    Console().print(comparison_table(comparison))
    if parsed.out is not None:
        write_json(parsed.out, comparison.to_dict())
    return 0


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    """Writes RUN/report.html: one page with curves, tables, configuration and videos.

    A finished run is first evaluated on held-out initial states, before and after RL, and filmed.
    """

    run: tyro.conf.Positional[Path]
    """Folder of a run of `simplevla train`."""
    episodes_per_task: Count = 0
    """The first so many held-out initial states of each task, for a quick look; 0: all. A later report of all replaces
    it."""
    trust_suite: bool = False
    """Consent to run the code of a suite `package.module:factory` that the run's folder names."""


@dataclass(frozen=True, kw_only=True)
class NoveltyArguments:
    """Says what RL changed in behaviour: simplevla novelty RUN.

    Compares solved held-out episodes, before and after RL, with the demonstrations of their tasks. The next report of
    the run shows it, with films of the most novel episodes. Two policies without a run: simplevla novelty --before DIR
    --after DIR --demos DIR --suite.name NAME --out DIR.
    """

    run: tyro.conf.Positional[Path | None] = None
    """Folder of a finished run of `simplevla train`."""
    demos: str | None = None
    """Demonstrations; left out, those that the run's first policy was trained on."""
    trust_suite: bool = False
    """Consent to run the code of a suite `package.module:factory` that the run's folder names."""
    before: str | None = None
    """Policy to compare, without a run."""
    after: str | None = None
    """The other policy."""
    out: Path | None = None
    """Folder for `novelty.json` and the films, without a run."""
    suite: SuiteConfig = field(default_factory=SuiteConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    device: str = "cpu"
    """Device on which the policies compute, without a run."""
    precision: Precision = "float32"
    """Precision of their products, as in `simplevla train`, without a run."""
    adapter: str = ""
    """Adapter that acts in each policy that has any, as in `simplevla eval`, without a run."""


def novelty_command(arguments: list[str]) -> int:
    parsed = read_arguments(NoveltyArguments, "novelty", arguments)

    from simplevla.report.novelty import FOLDER, novelty_table
    from simplevla.runs import novelty_of, novelty_of_run
    from simplevla.training.run_folder import load_config

    if parsed.run is not None:
        its_own, left_out = (
            ("before", "after", "out", "suite", "rollout", "device", "precision", "adapter"),
            NoveltyArguments(),
        )
        if given := [name for name in its_own if getattr(parsed, name) != getattr(left_out, name)]:
            raise UserError(
                f"--{given[0]} was given with the run {parsed.run}, which has its own policies and settings; leave it out, or give "
                "--before, --after, --demos and --out in place of the run"
            )
        require_consent(load_config(TrainConfig, parsed.run).suite, arguments, parsed.trust_suite)
        found, out = novelty_of_run(parsed.run, parsed.demos), parsed.run / FOLDER
    elif parsed.before and parsed.after and parsed.demos and parsed.out:
        out = parsed.out
        found = novelty_of(
            parsed.before,
            parsed.after,
            parsed.demos,
            parsed.suite,
            out,
            parsed.rollout,
            parsed.device,
            parsed.precision,
            parsed.adapter,
        )
    else:
        raise UserError("nothing to compare; give a run, or --before, --after, --demos and --out")
    Console().print(novelty_table(found))
    print(f"films and all episodes: {out}")
    if parsed.run is not None:
        print(f"simplevla report {parsed.run} shows it")
    return 0


def report_command(arguments: list[str]) -> int:
    parsed = read_arguments(ReportArguments, "report", arguments)

    from simplevla.runs import write_report
    from simplevla.training.run_folder import load_config

    require_consent(load_config(TrainConfig, parsed.run).suite, arguments, parsed.trust_suite)
    print(write_report(parsed.run, parsed.episodes_per_task))
    return 0
