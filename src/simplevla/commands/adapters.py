"""Lists adapters, takes them out of a policy, puts them into one, merges them, and tries the routing."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.table import Table

from simplevla import checked
from simplevla.adapters.config import AdapterConfig
from simplevla.checked import Positive, Seed
from simplevla.commands.help import read_arguments
from simplevla.effect import refuse_idle
from simplevla.errors import UserError
from simplevla.terminal import Console

if TYPE_CHECKING:
    from simplevla.adapters.bank import AdapterBank
    from simplevla.adapters.files import AdapterCard

POLICY = tyro.conf.Positional[str]
"""Folder of a saved policy, or hf://OWNER/NAME on the hub."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class List:
    """The adapters of a saved policy, or those in a folder of exported ones."""

    folder: POLICY
    """Folder of the policy, or of the exported adapters; or the policy's name on the hub."""

    def run(self) -> None:
        from simplevla import hub
        from simplevla.adapters.files import list_cards

        table = Table("name", "kind", "rank", "modules", "instructions", "success", "seed", "frozen", "base")
        for card in list_cards(hub.local_folder(self.folder, "model")):
            table.add_row(*_row(card))
        Console().print(table)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show:
    """Everything about one exported adapter, as JSON, and who can read its parameters."""

    folder: tyro.conf.Positional[Path]
    """Folder of the exported adapter."""

    def run(self) -> None:
        from simplevla.adapters.files import UNKNOWN, layout, read_card

        card = read_card(self.folder)
        unknown = UNKNOWN if card.base_sha256 is None else None
        shown = {"layout": layout(self.folder), "unknown": unknown, **dataclasses.asdict(card)}
        print(json.dumps(shown, indent=1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Writes one adapter of a saved policy into its own folder; a LoRA's is peft's layout, so peft reads it too."""

    policy: POLICY
    """Folder of the policy."""
    name: tyro.conf.Positional[str]
    """Name of the adapter."""
    out: tyro.conf.Positional[Path]
    """New folder for it."""

    def run(self) -> None:
        from simplevla.adapters.load import load_bank

        load_bank(self.policy).export(self.name, self.out)
        print(f"adapter {self.name!r} is in {self.out}")


@checked.dataclass(frozen=True, kw_only=True)
class New:
    """Writes a copy of a policy with a new adapter; `simplevla train --policy OUT` then trains that adapter alone."""

    policy: POLICY
    """Folder of the policy."""
    out: tyro.conf.Positional[Path]
    """New folder for the copy."""
    name: str
    """Name of the new adapter."""
    adapter: AdapterConfig = dataclasses.field(default_factory=AdapterConfig)
    instructions: tuple[str, ...] = ()
    """The tasks it is for; routing goes by them."""
    start_from: str | None = None
    """An adapter of the policy that the new one goes on from, with its settings; without, it begins as the identity."""
    seed: Seed = 0
    """Seed of the new adapter's parameters."""

    def run(self) -> None:
        from simplevla.adapters.bank import AdapterBank, bank_of
        from simplevla.adapters.load import load_policy

        _require_new(self.out)
        policy = load_policy(self.policy)
        bank = AdapterBank(policy) if policy.adapter_bank is None else bank_of(policy)
        if self.start_from:
            settings = [field.name for field in dataclasses.fields(self.adapter)]
            refuse_idle(self.adapter, dict.fromkeys(settings, f"it is that of {self.start_from!r}"))
        config = None if self.start_from else self.adapter
        bank.add(self.name, config, start_from=self.start_from, instructions=self.instructions, seed=self.seed)
        bank.activate(self.name, training=True)
        _save(bank, self.out)
        trained = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
        print(f"{self.out} has the adapters {', '.join(bank.names)}; {self.name!r} has {trained} parameters to train")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Add:
    """Writes a copy of a policy with an exported adapter, or a LoRA that peft saved, beside its own.

    The new adapter acts. Another base or other statistics are refused; peft's folders don't say theirs, and a warning
    says so.
    """

    policy: POLICY
    """Folder of the policy."""
    adapter: tyro.conf.Positional[Path]
    """Folder of the exported adapter, or of a LoRA that peft saved."""
    out: tyro.conf.Positional[Path]
    """New folder for the copy."""
    instructions: tuple[str, ...] = ()
    """More tasks that it is for; a LoRA that peft saved names none, and routing goes by them."""

    def run(self) -> None:
        from simplevla.adapters.load import load_bank

        _require_new(self.out)
        bank = load_bank(self.policy)
        name = bank.load(self.adapter)
        bank.add_instructions(name, self.instructions)
        bank.activate(name, training=False)
        _save(bank, self.out)
        print(f"{self.out} has the adapters {', '.join(bank.names)}; new is {name!r}, which acts")


@checked.dataclass(frozen=True, kw_only=True)
class Merge:
    """Writes a copy of a policy with one more adapter, the weighted sum of others, which acts."""

    policy: POLICY
    """Folder of the policy."""
    names: tyro.conf.Positional[tuple[str, ...]]
    """Adapters to merge."""
    into: str
    """Name of the new adapter."""
    out: Path
    """New folder for the copy."""
    weights: tuple[float, ...] = ()
    """One per adapter; equal ones that add up to 1 without."""
    kind: Literal["linear", "svd"] = "linear"
    """`linear` is exact and adds the ranks up; `svd` is the best approximation of `rank`."""
    rank: Positive | None = None
    """Rank of the new adapter, for `svd`."""

    def run(self) -> None:
        from simplevla.adapters.load import load_bank
        from simplevla.adapters.merging import merge

        _require_new(self.out)
        bank = load_bank(self.policy)
        weights = self.weights or (1 / max(len(self.names), 1),) * len(self.names)
        error = merge(bank, self.names, weights, self.into, kind=self.kind, rank=self.rank)
        bank.activate(self.into, training=False)
        _save(bank, self.out)
        print(
            f"{self.out} has the adapters {', '.join(bank.names)}; {self.into!r} acts; largest relative error of the sum {error:.2e}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Route:
    """Shows the adapter that the nearest instruction chooses; with --expect also how often that is right."""

    policy: POLICY
    """Folder of the policy."""
    instructions: tyro.conf.Positional[tuple[str, ...]]
    """Instructions to route."""
    expect: tuple[str, ...] = ()
    """The right adapter of each instruction."""

    def run(self) -> None:
        from simplevla.adapters.load import load_bank
        from simplevla.adapters.routing import NearestRouter, routing_accuracy

        if self.expect and len(self.expect) != len(self.instructions):
            raise UserError(f"got {len(self.instructions)} instructions and {len(self.expect)} in --expect")
        bank = load_bank(self.policy)
        router = NearestRouter(bank)
        idle = [name for name in bank.names if name not in router.names]
        if idle:
            print(f"left out, since they have no instructions: {', '.join(idle)}")
        for instruction in self.instructions:
            print(f"{instruction!r} -> {router(instruction)}")
        if self.expect:
            found = routing_accuracy(router, list(zip(self.instructions, self.expect, strict=True)))
            print(f"{found.correct} of {found.n} right")


Command = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[New, tyro.conf.subcommand("new")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Add, tyro.conf.subcommand("add")]
    | Annotated[Merge, tyro.conf.subcommand("merge")]
    | Annotated[Route, tyro.conf.subcommand("route")]
)


def adapters_command(arguments: list[str]) -> int:
    read_arguments(Command, "adapters", arguments, doc=__doc__).run()
    return 0


def _row(card: "AdapterCard") -> list[str]:
    success = f"{card.solved} of {card.n}" if card.n else "–"
    seed = "–" if card.seed is None else str(card.seed)
    instructions = "; ".join(card.instructions) or "–"
    kind, rank, frozen = card.config.kind, str(card.config.rank), "yes" if card.frozen else "no"
    base = "unknown" if card.base_sha256 is None else card.base_sha256[:12] + " (assumed)" * card.base_assumed
    return [card.name, kind, rank, str(len(card.modules)), instructions, success, seed, frozen, base]


def _save(bank: "AdapterBank", out: Path) -> None:
    """Base and adapters together or not at all."""
    from simplevla.storage import atomic_folder

    with atomic_folder(out) as temporary:
        bank.save(temporary)


def _require_new(out: Path) -> None:
    if out.exists():
        raise UserError(f"{out} exists already; name a new folder")
