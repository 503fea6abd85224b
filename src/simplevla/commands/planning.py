"""Prediction of the memory that a recipe needs, and of an update's seconds where they were measured."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import tyro

from simplevla.commands.arguments import EXIT_PROBLEMS, UNPREFIXED, recipe_called, take_name
from simplevla.commands.help import read_arguments
from simplevla.config import TrainConfig
from simplevla.errors import UserError
from simplevla.terminal import Console

if TYPE_CHECKING:
    from simplevla.policies.base import Policy


@dataclass(frozen=True, kw_only=True)
class PlanArguments:
    """Says if a recipe fits a machine, and what would make it fit: simplevla plan RECIPE --gpus N --memory GB.

    Bytes are counted on the policy's own code. Seconds are given where they were measured (docs/memory.md).
    """

    config: Annotated[TrainConfig, UNPREFIXED]
    """Recipe; its `policy` is a saved policy to plan for instead of the recipe's own."""
    gpus: int
    """Number of GPUs; 0 is a CPU machine."""
    memory: float
    """GB (1e9 bytes) of each GPU, or of the host without one."""
    adapter_rank: int = 0
    """Rank of a LoRA on every linear layer, which alone is trained. 0: all parameters, or the policy's own adapter."""


def plan_command(arguments: list[str]) -> int:
    from simplevla import recipes

    name, rest = take_name(arguments)
    if name is None and not {"-h", "--help"} & set(rest):
        raise UserError(f"no recipe given; expected one of {', '.join(recipes.TRAIN)}")
    default = PlanArguments(
        config=recipe_called(name, recipes.TRAIN, TrainConfig),
        gpus=tyro.MISSING,
        memory=tyro.MISSING,
        adapter_rank=recipes.ADAPTER_RANKS.get(name or "", 0),
    )
    parsed = read_arguments(PlanArguments, "plan", rest, default)

    from simplevla import hub
    from simplevla.adapters.config import AdapterConfig
    from simplevla.planning import show, unfilled
    from simplevla.planning.plan import Machine, plan, remedies
    from simplevla.suites.registry import make_suite

    machine = Machine(gpus=parsed.gpus, memory_gb=parsed.memory)
    config, suite = parsed.config, make_suite(parsed.config.suite)
    if machine.gpus > 1:
        # Refused where a run would be: each GPU has a learner.
        replace(config, ray=replace(config.ray, learners=machine.gpus, learner_gpus=1))
    supervised = recipes.SFT.get(name or "")

    def policy(adapter_rank: int) -> "Policy":
        if config.policy:
            made = unfilled.saved(hub.local_folder(config.policy, "model"))
        else:
            made = unfilled.supervised(supervised(), suite) if supervised else unfilled.published_openvla_oft(suite)
        if adapter_rank:
            unfilled.add_trained_adapter(made, AdapterConfig(rank=adapter_rank, alpha=adapter_rank))
        return made

    found = plan(config, policy(parsed.adapter_rank))
    fits = found.fits(machine)
    advice = [] if fits else remedies(found, policy, parsed.adapter_rank, machine)
    console = Console()
    console.print(show.table(found, machine))
    console.print(show.sources(found, machine), style="dim", highlight=False)
    print(show.time(found, machine))
    print(show.verdict(found, machine, advice))
    return 0 if fits else EXIT_PROBLEMS
