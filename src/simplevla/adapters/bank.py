"""The adapters of one policy: their list, the one that computes, the one that learns, and their folders."""

import contextlib
import dataclasses
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from simplevla import checked
from simplevla.adapters.config import AdapterConfig
from simplevla.adapters.embedding import prototype
from simplevla.adapters.files import BANK, CARD, UNKNOWN, AdapterCard, check_tensors, read_adapter, write_adapter
from simplevla.adapters.fingerprint import statistics_sha256, tensors_sha256
from simplevla.adapters.layers import KINDS, add_to_layer, check_name, parameter_shapes, parameters_of
from simplevla.adapters.peft_layout import TARGETS, read_config
from simplevla.adapters.targets import match_as_peft, match_modules
from simplevla.effect import warn_of_idle
from simplevla.errors import UserError
from simplevla.policies.base import Policy, Sampling
from simplevla.policies.files import is_finite
from simplevla.storage import atomic_folder, read_as

LARGEST = 10**8
"""Parameters that an adapter may have on the smallest policy; on others it may have more."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Facts about an adapter beside its parameters; the fields are those of `AdapterCard`."""

    config: AdapterConfig
    modules: tuple[str, ...]
    instructions: tuple[str, ...] = ()
    base_assumed: bool = False
    frozen: bool = False
    sampling: dict[str, Any] | None = None
    seed: int | None = None
    solved: int | None = None
    n: int | None = None

    @property
    def prototype(self) -> np.ndarray | None:
        """Mean embedding of the instructions, float32 [1024]; None without any."""
        return prototype(self.instructions) if self.instructions else None


@checked.dataclass(frozen=True, kw_only=True)
class BankState:
    """The content of `bank.json`."""

    names: tuple[str, ...]
    active: str | None
    training: bool


FIELDS = [field.name for field in dataclasses.fields(Entry)]


class AdapterBank:
    """Adapters of `policy`, which stays the policy it is: `act`, `score` and `imitation_loss` use the active adapter.

    The base is frozen from now on. No adapter is active at first, and without an active one the policy computes bit
    for bit what it did before. `policy.save` writes the base and all adapters, so that a checkpoint loses nothing, and
    `load_policy` brings them back.

    Raises:
        UserError: the policy has adapters already, or can't have any.
    """

    def __init__(self, policy: Policy) -> None:
        if any(isinstance(module, BaseTunerLayer) for module in policy.modules()):
            raise UserError("this policy has adapters already; use bank_of(policy), or load the policy again")
        policy.adapter_groups()
        self.policy = policy
        self.active: str | None = None
        """The adapter that computes; None is the base."""
        self.training = False
        """True while the active adapter may be trained."""
        self._entries: dict[str, Entry] = {}
        self._base: dict[str, nn.Module] = {}
        self._carriers: dict[str, dict[str, Any]] = {}
        policy.requires_grad_(False)
        policy.adapter_bank = self

    @property
    def names(self) -> list[str]:
        """Names of the adapters, in the order in which they came."""
        return list(self._entries)

    def entry(self, name: str) -> Entry:
        """Facts about the adapter `name`.

        Raises:
            UserError: there is none of that name.
        """
        if name not in self._entries:
            raise UserError(f"no adapter is called {name!r}; there are {', '.join(self.names) or 'none'}")
        return self._entries[name]

    def add(
        self,
        name: str,
        config: AdapterConfig | None = None,
        *,
        start_from: str | None = None,
        instructions: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        """A new adapter, inactive: it changes nothing until it is trained, or continues the adapter `start_from`.

        Args:
            config: None takes that of `start_from`, or the defaults.
            instructions: the tasks it is for; routing goes by them.
            seed: of its initial weights; the process's own random numbers are left alone.

        Raises:
            UserError: the name is taken or no name, the targets match no module or too many, `start_from` is unknown
                or of another config. Nothing is changed then.
        """
        self._check_new_name(name)
        if start_from is not None:
            parent = self.entry(start_from).config
            if config not in (None, parent):
                raise UserError(
                    f"adapter {name!r} starts from {start_from!r}, whose config is {parent}; got {config}. "
                    "Leave the config out, or start from the base"
                )
            config = parent
        config = config or AdapterConfig()
        if config.kind == "bottleneck":
            warn_of_idle(config, {"alpha": "a bottleneck has none"})
        with self.detached():
            modules = tuple(match_modules(self.policy, config))
        entry = Entry(config=config, modules=modules)
        self._attach(name, entry, seed)
        self.add_instructions(name, instructions)
        if start_from is not None:
            self._copy_into(name, self.parameters(start_from))

    def add_instructions(self, name: str, instructions: Sequence[str]) -> None:
        """The adapter `name` is for these tasks too."""
        entry = self.entry(name)
        known = tuple(dict.fromkeys([*entry.instructions, *instructions]))
        self._entries[name] = dataclasses.replace(entry, instructions=known)

    def assign(self, name: str, instructions: Sequence[str]) -> None:
        """The adapter `name` is for these tasks too, and no other one is any more."""
        for other in self.names:
            kept = tuple(text for text in self.entry(other).instructions if text not in instructions)
            self._entries[other] = dataclasses.replace(self.entry(other), instructions=kept)
        self.add_instructions(name, instructions)

    def activate(self, name: str | None, *, training: bool) -> None:
        """Lets the adapter `name` compute, or the base (None), and lets exactly its parameters be trained, or none.

        Raises:
            UserError: there is no such adapter, it is frozen, or the base is to be trained.
        """
        if name is None and training:
            raise UserError("the base of a bank is frozen; add an adapter to train, or train the policy without a bank")
        if name is not None and self.entry(name).frozen and training:
            raise UserError(f"adapter {name!r} is frozen; add another one with start_from={name!r} to train on")
        self.active, self.training = name, training
        self.policy.requires_grad_(False)
        self._compute_with(name)
        expected = self._full_names(name) if name is not None and training else []
        got = self.trainable_names()
        assert got == expected, f"trainable are {got}; expected {expected}"

    @contextlib.contextmanager
    def selected(self, name: str | None) -> Iterator[None]:
        """Lets another adapter, or the base (None), compute inside the block; what may be trained stays as it is."""
        if name is not None:
            self.entry(name)
        self._compute_with(name)
        try:
            yield
        finally:
            self._compute_with(self.active)

    @contextlib.contextmanager
    def dropping_out(self) -> Iterator[None]:
        """Lets the trained adapter's dropout act inside the block."""
        name = self.active if self.training else None
        dropouts: list[nn.Module] = []
        if name is not None:
            kind = self.entry(name).config.kind
            dropouts = [getattr(self.carrier(name, at), f"{kind}_dropout")[name] for at in self.entry(name).modules]
        for dropout in dropouts:
            dropout.train()
        try:
            yield
        finally:
            for dropout in dropouts:
                dropout.eval()

    def freeze(self, name: str) -> None:
        """The adapter `name` may never be trained again; if it is being trained, it goes on for inference."""
        self._entries[name] = dataclasses.replace(self.entry(name), frozen=True)
        if self.active == name:
            self.activate(name, training=False)

    def remove(self, name: str) -> None:
        """Forgets the adapter `name`; if it was active, the base becomes active.

        After the last one is gone the modules are as they were.
        """
        entry = self.entry(name)
        if self.active == name:
            self.activate(None, training=False)
        for module in entry.modules:
            carriers = self._carriers[module]
            carrier = carriers[entry.config.kind]
            carrier.delete_adapter(name)
            if not any(len(getattr(carrier, part)) for part in carrier.adapter_layer_names):
                del carriers[entry.config.kind]
            self._place(module)
            if not carriers:
                del self._carriers[module], self._base[module]
        del self._entries[name]

    def parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The adapter's parameters by module and part, such as `head.linear.lora_A.weight`."""
        entry = self.entry(name)
        return {
            f"{module}.{key}": parameter
            for module in entry.modules
            for key, parameter in parameters_of(self._carriers[module][entry.config.kind], name).items()
        }

    def trainable_names(self) -> list[str]:
        """Names of the policy's parameters that a learner would train, sorted."""
        return sorted(name for name, parameter in self.policy.named_parameters() if parameter.requires_grad)

    def bytes(self, name: str) -> int:
        """Memory of the adapter's parameters, bytes."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.parameters(name).values())

    def base_layer(self, module: str) -> nn.Module:
        """The layer that adapters of `module` change."""
        return self._base[module]

    def carrier(self, name: str, module: str) -> Any:
        """The peft layer that carries the adapter `name` at `module`."""
        return self._carriers[module][self.entry(name).config.kind]

    @contextlib.contextmanager
    def detached(self) -> Iterator[None]:
        """Context in which the policy is the plain base, its modules and parameters under their own names."""
        for module, base in self._base.items():
            self.policy.set_submodule(module, base)
        try:
            yield
        finally:
            for module in self._base:
                self._place(module)

    def base_sha256(self) -> str:
        """Fingerprint of the base weights as they are now."""
        with self.detached():
            return tensors_sha256(self.policy.state_dict())

    def save_base(self, folder: Path) -> None:
        """Writes the policy without adapters, byte for byte what it was before it got a bank."""
        with self.detached():
            self.policy.save_alone(folder)

    def save(self, folder: Path | str) -> None:
        """Writes the base into `folder` and every adapter into `folder/adapters/NAME`; `load_policy` reads both."""
        folder = Path(folder)
        self.save_base(folder)
        base = self.base_sha256()
        with atomic_folder(folder / BANK.parent) as temporary:
            for name in self.names:
                (temporary / name).mkdir()
                write_adapter(temporary / name, self._card(name, self.entry(name), base), self._tensors(name))
            state = BankState(names=tuple(self.names), active=self.active, training=self.training)
            (temporary / BANK.name).write_text(json.dumps(dataclasses.asdict(state), indent=1) + "\n")

    def export(
        self,
        name: str,
        folder: Path | str,
        *,
        sampling: Sampling | None = None,
        seed: int | None = None,
        success: tuple[int, int] | None = None,
    ) -> None:
        """Writes the adapter `name` into the new folder `folder`; peft reads a LoRA from there, `load` both kinds.

        Args:
            sampling: how actions were drawn when success was measured.
            seed: of the training run.
            success: (episodes solved, n). What is given is remembered by the bank; what isn't, is as it was.

        Raises:
            UserError: unknown adapter, impossible success, values that aren't finite numbers, or `folder` exists.
        """
        folder = Path(folder)
        if folder.exists():
            raise UserError(f"{folder} exists already; export into a new folder, or delete it")
        entry = self.entry(name)
        if sampling is not None:
            entry = dataclasses.replace(entry, sampling=dataclasses.asdict(sampling))
        if seed is not None:
            entry = dataclasses.replace(entry, seed=seed)
        if success is not None:
            entry = dataclasses.replace(entry, solved=success[0], n=success[1])
        card = self._card(name, entry, self.base_sha256())
        with atomic_folder(folder) as temporary:
            write_adapter(temporary, card, self._tensors(name))
        self._entries[name] = entry

    def load(self, folder: Path | str, name: str | None = None) -> str:
        """Adds the adapter that `export`, or peft's `save_pretrained`, wrote, inactive; returns its name.

        A folder that peft wrote is called as the folder is. It doesn't say which base it was trained on: a warning says
        so, and only the modules and the shapes are compared.

        Args:
            name: replaces the adapter's own.

        Raises:
            UserError: the folder is damaged, the name is taken, the adapter belongs to another base, other statistics
                or other modules, or is of a kind of LoRA that isn't computed here. Nothing is changed then.
        """
        return self._load(Path(folder), name, self.base_sha256())

    def _load(self, folder: Path, name: str | None, base: str) -> str:
        card, tensors = read_adapter(folder)
        name = name or card.name
        self._check_new_name(name)
        by_peft = card.base_sha256 is None
        for what, got, expected in (
            ("base weights", card.base_sha256, base),
            ("normalisation statistics", card.statistics_sha256, statistics_sha256(self.policy.statistics)),
        ):
            if got is not None and got != expected:
                raise UserError(
                    f"the adapter in {folder} was trained on other {what}: sha256 {got[:12]}, this policy has "
                    f"{expected[:12]}. Load it onto the policy it was trained on"
                )
        with self.detached():
            modules = tuple(match_modules(self.policy, card.config))
            matched = set(modules)
            if by_peft:
                settings = read_config(folder)
                matched = match_as_peft(self.policy, {key: settings.get(key) for key in TARGETS})
            if matched != set(card.modules):
                raise UserError(
                    f"the adapter in {folder} is for {len(card.modules)} modules, its targets match {len(matched)} of "
                    f"this policy: {sorted(matched ^ set(card.modules))[:3]} differ"
                )
            expected_shapes = {
                f"{module}.{key}": shape
                for module in modules
                for key, shape in parameter_shapes(self.policy.get_submodule(module), card.config).items()
            }
        check_tensors(folder, tensors, expected_shapes)
        if by_peft:
            warnings.warn(
                f"{folder} has no {CARD}, so {UNKNOWN} aren't known. It fits this policy's modules; whether it was "
                "trained on these weights can't be checked",
                stacklevel=3,
            )
            card = dataclasses.replace(
                card, modules=modules, config=dataclasses.replace(card.config, targets=modules), base_assumed=True
            )
        self._attach(name, Entry(**{key: getattr(card, key) for key in FIELDS}), seed=0)
        self._copy_into(name, tensors)
        return name

    def _check_new_name(self, name: str) -> None:
        check_name(name)
        if name in self._entries:
            raise UserError(f"an adapter called {name!r} is there already; choose another name, or remove it first")

    def _attach(self, name: str, entry: Entry, seed: int) -> None:
        with self.detached(), torch.random.fork_rng(devices=[]):
            self._check_size(name, entry)
            torch.manual_seed(seed)
            for module in entry.modules:
                base = self._base.setdefault(module, self.policy.get_submodule(module))
                carriers = self._carriers.setdefault(module, {})
                kind = entry.config.kind
                carriers[kind] = add_to_layer(base, carriers.get(kind), name, entry.config)
        self._entries[name] = entry
        self._compute_with(self.active)

    def _check_size(self, name: str, entry: Entry) -> None:
        """Refuses a rank with which the adapter would be larger than any adapter is, and perhaps than the memory."""
        layers = [self.policy.get_submodule(module) for module in entry.modules]
        shapes = [shape for layer in layers for shape in parameter_shapes(layer, entry.config).values()]
        numbers, base = sum(map(math.prod, shapes)), sum(parameter.numel() for parameter in self.policy.parameters())
        if numbers > max(LARGEST, 4 * base):
            raise UserError(
                f"adapter {name!r} of rank {entry.config.rank} would have {numbers} parameters, the policy has {base}; expected a "
                "smaller rank, such as 32"
            )

    def _compute_with(self, name: str | None) -> None:
        for carriers in self._carriers.values():
            for carrier in carriers.values():
                carrier.set_adapter([] if name is None else [name], inference_mode=True)
        if self.active is not None and self.training:
            for parameter in self.parameters(self.active).values():
                parameter.requires_grad_(True)

    def _place(self, module: str) -> None:
        """Puts the base layer of `module`, inside the carriers around it, into the policy."""
        layer = self._base[module]
        for kind in KINDS:
            carrier = self._carriers[module].get(kind)
            if carrier is not None:
                carrier.base_layer = layer
                layer = carrier
        self.policy.set_submodule(module, layer)

    def _full_names(self, name: str) -> list[str]:
        """Names of the adapter's parameters as the policy lists them, written down from the layout of the layers."""
        entry = self.entry(name)
        kind = entry.config.kind
        names = []
        for module in entry.modules:
            outer = [other for other in self._carriers[module] if KINDS.index(other) > KINDS.index(kind)]
            prefix = module + ".base_layer" * len(outer)
            for key in parameter_shapes(self._base[module], entry.config):
                part, _, leaf = key.partition(".")
                names.append(f"{prefix}.{part}.{name}.{leaf}")
        return sorted(names)

    @torch.no_grad()
    def _copy_into(self, name: str, tensors: dict[str, Any]) -> None:
        for key, parameter in self.parameters(name).items():
            parameter.copy_(tensors[key])

    def _tensors(self, name: str) -> dict[str, Tensor]:
        """The adapter's parameters, to be written."""
        tensors = dict[str, Tensor](self.parameters(name))
        wrong = [key for key, tensor in tensors.items() if not is_finite(tensor)]
        if wrong:
            raise UserError(
                f"adapter {name!r} isn't written: {len(wrong)} of its {len(tensors)} tensors hold values that aren't "
                f"finite numbers, {wrong[0]} first. Go back to a checkpoint before they did"
            )
        return tensors

    def _card(self, name: str, entry: Entry, base: str) -> AdapterCard:
        values = {key: getattr(entry, key) for key in FIELDS}
        statistics = statistics_sha256(self.policy.statistics)
        return AdapterCard(name=name, base_sha256=base, statistics_sha256=statistics, **values)


def bank_of(policy: Policy) -> AdapterBank:
    """The bank that holds the policy's adapters.

    Raises:
        UserError: it has none.
    """
    bank = policy.adapter_bank
    if bank is None:
        raise UserError("this policy has no adapter bank; make one: AdapterBank(policy)")
    assert isinstance(bank, AdapterBank)
    return bank


def restore_bank(policy: Policy, folder: Path) -> None:
    """Gives `policy`, just loaded from `folder`, the adapters saved beside it, the same one active.

    Raises:
        UserError: an adapter is damaged or missing, or there is one too many.
    """
    file = folder / BANK
    state = read_as(file, BankState)
    found = sorted(path.name for path in file.parent.iterdir() if path.is_dir() and not path.name.startswith("."))
    if sorted(state.names) != found:
        raise UserError(f"{file} lists the adapters {sorted(state.names)}; beside it are {found}")
    bank = AdapterBank(policy)
    base = bank.base_sha256()
    for name in state.names:
        written = bank._load(file.parent / name, None, base)
        if written != name:
            raise UserError(
                f"{file.parent / name} holds the adapter {written!r}; were folders renamed? Name it as its adapter is called"
            )
    bank.activate(state.active, training=state.training)
