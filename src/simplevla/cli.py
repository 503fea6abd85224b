"""The command line: parses, then calls one room. Rooms are imported only by the command that needs them."""

import difflib
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from simplevla.config import DemosConfig, EvalConfig, RolloutConfig, SFTConfig, SuiteConfig, TrainConfig

if TYPE_CHECKING:
    from simplevla.policies.base import Policy
    from simplevla.training.loop import MakeEngine, MakeLearner

EXIT_PROBLEMS = 1
EXIT_ERROR = 2
EXIT_NO_SIGNAL = 3
EXIT_INTERRUPTED = 130

UNPREFIXED = tyro.conf.arg(name="")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 problems found, 2 error, 3 no learning signal."""
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
            raise ValueError(f"unknown command {name!r}.{_near(name, COMMANDS)} Commands: {', '.join(COMMANDS)}")
        return COMMANDS[name][0](arguments[1:])
    except (ValueError, ImportError, OSError) as error:
        if debug:
            raise
        _print_error(str(error))
        return EXIT_ERROR
    except KeyboardInterrupt:
        _print_error("interrupted; a training run goes on with: simplevla train --resume RUN")
        return EXIT_INTERRUPTED


def _usage() -> str:
    rows = "\n".join(f"  {name:<12} {text}" for name, (_, text) in COMMANDS.items())
    return f"usage: simplevla COMMAND [ARGUMENTS]\n\n{rows}\n\nsimplevla COMMAND --help lists a command's arguments."


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _print_error(message: str) -> None:
    """One line on stderr, red where that is a terminal."""
    line = "error: " + " ".join(message.split())
    print(f"\033[31m{line}\033[0m" if sys.stderr.isatty() else line, file=sys.stderr)


def _take_name(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The first argument if it is a name and no flag, and the others."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    return None, arguments


def _recipe(name: str | None, recipes: dict[str, Callable[[], Any]], fallback: Callable[[], Any]) -> Any:
    """The config that the recipe called `name` returns; `fallback`'s without a name."""
    if name is None:
        return fallback()
    if name not in recipes:
        raise ValueError(f"unknown recipe {name!r}.{_near(name, recipes)} List them: simplevla list recipes")
    return recipes[name]()


def _resumed(arguments: list[str]) -> Path | None:
    """The value of --resume, needed before parsing, since that run's config gives the other defaults."""
    for i, argument in enumerate(arguments):
        if argument == "--resume" and i + 1 < len(arguments):
            return Path(arguments[i + 1])
        if argument.startswith("--resume="):
            return Path(argument.partition("=")[2])
    return None


def _new_run(run: Path | None) -> Path:
    if run is None:
        raise ValueError("no run folder given; name a new one: --run runs/NAME")
    return run


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """Improve a supervised policy by RL: simplevla train [RECIPE] --policy DIR --run RUN, or train --resume RUN."""

    config: Annotated[TrainConfig, UNPREFIXED] = field(default_factory=TrainConfig)
    run: Path | None = None
    """New folder for everything about the run; the result is RUN/policy."""
    resume: Path | None = None
    """Go on with this run from its newest checkpoint; the config is the run's own."""


def _train(arguments: list[str]) -> int:
    from simplevla import recipes
    from simplevla.training.loop import train
    from simplevla.training.runlog import load_config

    name, rest = _take_name(arguments)
    resumed = _resumed(rest)
    config = load_config(TrainConfig, resumed) if resumed else _recipe(name, recipes.TRAIN, TrainConfig)
    parsed = tyro.cli(TrainArguments, prog="simplevla train", args=rest, default=TrainArguments(config=config))
    run = parsed.resume or _new_run(parsed.run)
    engine, learner = _rooms(parsed.config)
    outcome = train(parsed.config, run, parsed.resume is not None, make_engine=engine, make_learner=learner)
    print(outcome.message)
    return EXIT_NO_SIGNAL if outcome.reason == "no_signal" else 0


def _rooms(config: TrainConfig) -> "tuple[MakeEngine, MakeLearner]":
    """What rolls out and what trains: this process and its workers, or the actors of a Ray cluster."""
    from simplevla.training.learner import Learner
    from simplevla.training.loop import local_engine

    settings = config.ray
    if not (settings.actors or settings.simulators or settings.learners):
        return local_engine, Learner
    try:
        from simplevla.distributed.engine import RayEngine
        from simplevla.distributed.learner import RayLearner
        from simplevla.distributed.simulators import engine_with_remote_simulators
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ValueError(
            "ray.actors, ray.simulators and ray.learners need Ray: pip install 'simplevla-rl[ray]'; or leave them at 0"
        ) from None
    engine = RayEngine if settings.actors else engine_with_remote_simulators if settings.simulators else local_engine
    return engine, RayLearner if settings.learners else Learner


@dataclass(frozen=True, kw_only=True)
class SFTArguments:
    """Imitate demonstrations: simplevla sft [RECIPE] --dataset DIR --run RUN, or sft --resume RUN."""

    config: Annotated[SFTConfig, UNPREFIXED] = field(default_factory=SFTConfig)
    run: Path | None = None
    """New folder for everything about the run; the result is RUN/policy."""
    resume: Path | None = None
    """Go on with this run from its newest checkpoint; the config is the run's own."""


def _sft(arguments: list[str]) -> int:
    from simplevla import recipes
    from simplevla.training.imitation import sft
    from simplevla.training.runlog import load_config

    name, rest = _take_name(arguments)
    resumed = _resumed(rest)
    config = load_config(SFTConfig, resumed) if resumed else _recipe(name, recipes.SFT, SFTConfig)
    parsed = tyro.cli(SFTArguments, prog="simplevla sft", args=rest, default=SFTArguments(config=config))
    policy = sft(parsed.config, parsed.resume or _new_run(parsed.run), resume=parsed.resume is not None)
    print(f"the policy is in {policy}")
    return 0


@dataclass(frozen=True, kw_only=True)
class DemosArguments:
    """Write demonstrations by a suite's scripted expert: simplevla demos SUITE|RECIPE --episodes N --out DIR."""

    config: Annotated[DemosConfig, UNPREFIXED] = field(default_factory=DemosConfig)
    out: Path
    """Folder of the LeRobotDataset v3.0; an unfinished one is gone on with."""


def _demos(arguments: list[str]) -> int:
    from simplevla import recipes
    from simplevla.demonstrations.generate import generate

    name, rest = _take_name(arguments)
    if name is None or name in recipes.DEMOS:
        config = _recipe(name, recipes.DEMOS, DemosConfig)
    else:
        config = DemosConfig(suite=SuiteConfig(name=name))
    default = DemosArguments(config=config, out=tyro.MISSING)
    parsed = tyro.cli(DemosArguments, prog="simplevla demos", args=rest, default=default)
    generate(parsed.config, parsed.out)
    return 0


def _continual(arguments: list[str]) -> int:
    from simplevla import recipes
    from simplevla.adapters.config import ContinualConfig
    from simplevla.report.continual import write_continual_report
    from simplevla.training.continual import continual
    from simplevla.training.runlog import load_config

    @dataclass(frozen=True, kw_only=True)
    class ContinualArguments:
        """Train tasks one after another: simplevla continual RECIPE --train.policy DIR --run RUN, or --resume RUN."""

        config: Annotated[ContinualConfig, UNPREFIXED]
        run: Path | None = None
        """New folder for everything; RUN/continual.json and RUN/continual.html are the result."""
        resume: Path | None = None
        """Go on with this run wherever it stopped; the config is the run's own."""

    name, rest = _take_name(arguments)
    resumed = _resumed(rest)
    if name is None and resumed is None:
        raise ValueError(f"no recipe given; expected one of {', '.join(recipes.CONTINUAL)}")
    fallback = recipes.CONTINUAL["tabletop_continual"]
    config = load_config(ContinualConfig, resumed) if resumed else _recipe(name, recipes.CONTINUAL, fallback)
    default = ContinualArguments(config=config)
    parsed = tyro.cli(ContinualArguments, prog="simplevla continual", args=rest, default=default)
    run = parsed.resume or _new_run(parsed.run)
    result = continual(parsed.config, run, resume=parsed.resume is not None)
    shown = ", ".join(
        f"{key} {100 * result[key]:.1f}" for key in ("AVG", "NBT", "FWT", "ZS") if result[key] is not None
    )
    print(f"{shown} points; {run / 'continual.json'}, report {write_continual_report(run)}")
    return 0


@dataclass(frozen=True, kw_only=True)
class EvalArguments:
    """Closed-loop success per task: simplevla eval [RECIPE] --policy DIR [--suite.name NAME] [--split test] [--out FILE].

    With a recipe of `simplevla train`, suite, rollout and device are its own, and published successes are compared.
    """

    config: Annotated[EvalConfig, UNPREFIXED] = field(default_factory=EvalConfig)
    policy: Path
    """Folder of a saved policy, for example RUN/policy."""
    suite: SuiteConfig = field(default_factory=SuiteConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    out: Path | None = None
    """JSON file for the result; `simplevla compare` reads two of them."""
    device: str = "cpu"


def _evaluate(arguments: list[str]) -> int:
    from rich.console import Console

    from simplevla import recipes
    from simplevla.recipes.openvla_oft import PUBLISHED
    from simplevla.recipes.parity import parity

    name, rest = _take_name(arguments)
    recipe = _recipe(name, recipes.TRAIN, TrainConfig)
    default = EvalArguments(policy=tyro.MISSING, suite=recipe.suite, rollout=recipe.rollout, device=recipe.device)
    parsed = tyro.cli(EvalArguments, prog="simplevla eval", args=rest, default=default)

    from simplevla.evaluation.evaluate import evaluate_folder
    from simplevla.evaluation.result import result_table, write_result

    result = evaluate_folder(parsed.policy, parsed.suite, parsed.rollout, parsed.config, parsed.device)
    if parsed.out is not None:
        write_result(parsed.out, result)
    Console().print(result_table(result))
    if name in PUBLISHED:
        print(parity(name, result))
    return 0


@dataclass(frozen=True, kw_only=True)
class CompareArguments:
    """Compare two results of `simplevla eval` on the same initial states (McNemar's exact test)."""

    a: tyro.conf.Positional[Path]
    b: tyro.conf.Positional[Path]
    out: Path | None = None
    """JSON file for the comparison."""


def _compare(arguments: list[str]) -> int:
    parsed = tyro.cli(CompareArguments, prog="simplevla compare", args=arguments)

    from rich.console import Console

    from simplevla.evaluation.compare import compare_files, comparison_table
    from simplevla.evaluation.provenance import write_json

    comparison = compare_files(parsed.a, parsed.b)
    if parsed.out is not None:
        write_json(parsed.out, comparison.to_dict())
    Console().print(comparison_table(comparison))
    return 0


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    """Write RUN/report.html: one page with curves, tables, configuration and videos.

    A finished run is first evaluated on all held-out initial states, before and after RL, and filmed, unless it has been.
    """

    run: tyro.conf.Positional[Path]


def _report(arguments: list[str]) -> int:
    parsed = tyro.cli(ReportArguments, prog="simplevla report", args=arguments)

    from simplevla.report.evidence import gather_evidence
    from simplevla.report.page import write_report

    gather_evidence(parsed.run)
    print(write_report(parsed.run))
    return 0


@dataclass(frozen=True, kw_only=True)
class CheckSuiteArguments:
    """Find mistakes in a suite: simplevla check-suite NAME|package.module:factory."""

    suite: SuiteConfig = field(default_factory=SuiteConfig)


def _check_suite(arguments: list[str]) -> int:
    name, rest = _take_name(arguments)
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
        near = _near(arguments[0], kinds) if arguments else ""
        raise ValueError(f"list what? Got {got!r}; expected one of: {', '.join(kinds)}.{near}")
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
    from simplevla.policies.tinyvla.presets import PRESETS

    return [f"tinyvla {name}" for name in PRESETS]


@dataclass(frozen=True, kw_only=True)
class ImportArguments:
    """Convert a TinyVLA checkpoint to a policy folder: simplevla import tinyvla DIR OUT --cameras NAME [NAME ...].

    Nothing in the checkpoint is run, and nothing is written unless all of it fits.
    """

    folder: tyro.conf.Positional[Path]
    """The training's output folder, or a checkpoint-N in it."""
    out: tyro.conf.Positional[Path]
    """New folder for the policy."""
    cameras: tuple[str, ...]
    """The suite's names of the cameras, in the order that the training had them in."""
    base: Path | None = None
    """Folder of the Llava-Pythia model that the training started from, for files and tensors that DIR lacks."""
    frame: tuple[int, int] | None = (180, 320)
    """Height and width that the training's data loading resized camera images to; None if it left them."""


@dataclass(frozen=True, kw_only=True)
class ImportOpenVLAArguments:
    """Convert a published OpenVLA-OFT checkpoint to a policy folder: simplevla import openvla-oft DIR OUT --cameras fixed.

    Nothing in the checkpoint is run, and nothing is written unless all of it fits.
    """

    folder: tyro.conf.Positional[Path]
    """The published folder: config.json, safetensors, dataset_statistics.json, preprocessor_config.json, tokenizer.json."""
    out: tyro.conf.Positional[Path]
    """New folder for the policy."""
    cameras: tuple[str, ...]
    """The suite's names of the cameras, in the order that the training had them in; LIBERO's agent view is `fixed`."""
    statistics_key: str | None = None
    """Which of the checkpoint's statistics, such as libero_spatial; not needed if there is one only."""
    chunk_length: int = 8
    """Actions in a chunk, as trained: 8 for LIBERO, 25 for RoboTwin and ALOHA."""
    gripper: Literal["libero", "none"] = "libero"
    """`libero`: the last action dimension is 1 for open in the model and -1 in the simulator; `none`: it is as it is."""


def _import(arguments: list[str]) -> int:
    name, rest = _take_name(arguments)
    kinds = ("tinyvla", "openvla-oft")
    if name not in kinds and not {"-h", "--help"} & set(arguments):
        expected = " or ".join(map(repr, kinds))
        raise ValueError(f"import what? Got {name!r}; expected {expected}.{_near(name or '', kinds)}")
    if name == "openvla-oft":
        return _import_openvla_oft(rest)
    parsed = tyro.cli(ImportArguments, prog="simplevla import tinyvla", args=rest)

    from simplevla.policies.tinyvla.published import import_tinyvla

    report = import_tinyvla(parsed.folder, parsed.out, cameras=parsed.cameras, base=parsed.base, frame=parsed.frame)
    print(
        f"the policy is in {parsed.out}: {report.tensors} tensors, an adapter merged into {report.merged} of them, "
        f"{report.unread} of the checkpoint that the model never reads left out"
    )
    return 0


def _import_openvla_oft(arguments: list[str]) -> int:
    parsed = tyro.cli(ImportOpenVLAArguments, prog="simplevla import openvla-oft", args=arguments)

    from simplevla.policies.openvla_oft.published import import_openvla_oft

    report = import_openvla_oft(
        parsed.folder,
        parsed.out,
        cameras=parsed.cameras,
        statistics_key=parsed.statistics_key,
        chunk_length=parsed.chunk_length,
        gripper=parsed.gripper,
    )
    print(
        f"the policy is in {parsed.out}: {report.tensors} tensors, {report.parameters / 1e6:.1f} million parameters in "
        f"{report.config.dtype}, statistics of {report.statistics_key}; {report.unread} tensors that the model never reads left out"
    )
    return 0


@dataclass(frozen=True, kw_only=True)
class PlanArguments:
    """Whether a training recipe fits, and how long an update takes: simplevla plan RECIPE --gpus N --memory GB.

    Computed from the policy's sizes and from costs measured on two CPU cores; docs/memory.md and docs/scale.md explain it.
    """

    config: Annotated[TrainConfig, UNPREFIXED]
    """Its `policy` is a saved policy to plan for instead of the recipe's own."""
    gpus: int
    """0: a CPU machine like the one that was measured."""
    memory: float
    """GB (1e9 bytes) of each GPU, or of the host without one."""
    cores: int = 0
    """CPU cores in all; 0: 16 per GPU, two without one."""
    simulators: int = 0
    """Environments in all; 0: what the recipe gives each rollout actor, one per GPU."""
    tflops: float = 396.0
    """What a GPU reaches; an H100 at 40 % of its 990 is an assumption."""
    adapter_rank: int = 0
    """Of a LoRA on every linear layer, which alone is trained; 0: all parameters, or the saved policy's adapter."""


def _plan(arguments: list[str]) -> int:
    from simplevla import recipes

    name, rest = _take_name(arguments)
    if name is None and not {"-h", "--help"} & set(rest):
        raise ValueError(f"no recipe given; expected one of {', '.join(recipes.TRAIN)}")
    default = PlanArguments(
        config=_recipe(name, recipes.TRAIN, TrainConfig),
        gpus=tyro.MISSING,
        memory=tyro.MISSING,
        adapter_rank=recipes.ADAPTER_RANKS.get(name or "", 0),
    )
    parsed = tyro.cli(PlanArguments, prog="simplevla plan", args=rest, default=default)

    from rich.console import Console

    from simplevla.adapters.config import AdapterConfig
    from simplevla.planning import show, unfilled
    from simplevla.planning.plan import Machine, plan, remedies
    from simplevla.suites.registry import make_suite

    machine = Machine(
        gpus=parsed.gpus,
        memory_gb=parsed.memory,
        cores=parsed.cores,
        simulators=parsed.simulators,
        tflops=parsed.tflops,
    )
    config, suite = parsed.config, make_suite(parsed.config.suite)
    supervised = recipes.SFT.get(name or "")

    def policy(adapter_rank: int) -> "Policy":
        if config.policy:
            made = unfilled.saved(Path(config.policy))
        else:
            made = (
                unfilled.supervised_tinyvla(supervised(), suite)
                if supervised
                else unfilled.published_openvla_oft(suite)
            )
        if adapter_rank:
            unfilled.add_adapter(made, AdapterConfig(rank=adapter_rank, alpha=adapter_rank))
        return made

    found = plan(config, policy(parsed.adapter_rank), machine)
    advice = [] if found.fits else remedies(config, policy, parsed.adapter_rank, machine)
    console = Console()
    console.print(show.table(found, machine))
    console.print(show.sources(machine), style="dim", highlight=False)
    print(show.verdict(found, machine, advice))
    return 0 if found.fits else EXIT_PROBLEMS


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
        raise ValueError(
            f"no {script}: the benchmarks are part of the repository, not of the package. "
            "Run this from a checkout that was installed with: pip install -e ."
        )
    return subprocess.run([sys.executable, str(script), *arguments]).returncode


COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "demos": (_demos, "generate demonstrations with a suite's scripted expert"),
    "sft": (_sft, "supervised fine-tuning on demonstrations"),
    "train": (_train, "improve a supervised policy by reinforcement learning"),
    "plan": (_plan, "say whether a training recipe fits a machine, and how long an update takes there"),
    "continual": (_continual, "train tasks one after another, each with its own adapter or with a shared one"),
    "eval": (_evaluate, "measure closed-loop success on held-out initial states"),
    "compare": (_compare, "compare two evaluations on the same initial states"),
    "report": (_report, "write one HTML page about a run"),
    "adapters": (_adapters, "list, show, export, add, merge or route the adapters of a policy"),
    "import": (_import, "convert a TinyVLA or OpenVLA-OFT checkpoint to a policy folder"),
    "check-suite": (_check_suite, "find mistakes in a suite of your own"),
    "demo": (_demo, "run the main job on the embedded suite, from nothing to a report"),
    "bench": (_bench, "measure rollouts and updates side by side with how others do them"),
    "list": (_list, "list suites, recipes or policies"),
}

if __name__ == "__main__":
    sys.exit(main())
