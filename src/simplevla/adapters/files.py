"""An adapter as a folder: `adapter.json`, the card, and beside it the parameters.

LoRA's are in peft's own layout (`peft_layout.py`), so that peft reads the folder too; a folder that peft wrote, without
a card, is read as well. peft has no bottlenecks: their parameters are in `adapter.safetensors`, by module and part, and
nothing but this program reads them. Format 1 had LoRA in that file too, and a vector that now follows from the card.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from simplevla.adapters import peft_layout
from simplevla.adapters.config import AdapterConfig
from simplevla.adapters.fingerprint import json_sha256, tensors_sha256
from simplevla.checked import Count, Seed, dataclass, from_dict
from simplevla.errors import UserError, brief
from simplevla.policies.files import is_finite
from simplevla.storage import read_json

FORMAT = 2
"""Raised when the layout changes; an older program then refuses by name instead of misreading."""
BANK = Path("adapters") / "bank.json"
"""The list of the adapters that a policy was saved with, in its folder."""
TENSORS, CARD = "adapter.safetensors", "adapter.json"
CARDS = (CARD, peft_layout.CONFIG)
"""A folder with either holds an adapter."""
PROTOTYPE = "prototype"
"""Key of the vector among the tensors of format 1; parameters' names contain dots."""
UNKNOWN = "the base weights and statistics it was trained on, its instructions, seed and success"
"""The value of a card's field that a folder without a card doesn't give."""


@dataclass(frozen=True, kw_only=True)
class AdapterCard:
    """All about an adapter but its parameters; the content of `adapter.json`."""

    name: str
    config: AdapterConfig
    modules: tuple[str, ...]
    """The modules of the policy that it changes."""
    instructions: tuple[str, ...]
    """The tasks it is for, in the policy's words."""
    base_sha256: str | None
    """Fingerprint of the base weights that it was trained on; None in a folder that peft wrote, which doesn't say."""
    statistics_sha256: str | None
    """Fingerprint of the normalisation statistics that it was trained with; None likewise."""
    base_assumed: bool = False
    """True if the adapter came from a folder that peft wrote.

    Both sums are then of the policy that it was loaded onto, which may not be the one that it was trained on.
    """
    frozen: bool = False
    """True if it is not to be trained any more."""
    sampling: dict[str, Any] | None = None
    """Sampling of the actions when `success` was measured: `temperature`, `greedy`."""
    seed: Seed | None = None
    """Seed of the training run."""
    solved: Count | None = None
    """Episodes solved in the last evaluation, of `n`."""
    n: Count | None = None

    def __post_init__(self) -> None:
        if (self.solved is None) != (self.n is None):
            raise UserError(f"adapter {self.name!r}: solved is {self.solved}, n is {self.n}; expected both or neither")
        if self.solved is not None and self.n is not None and self.solved > self.n:
            raise UserError(f"adapter {self.name!r}: {self.solved} solved of n = {self.n}; expected 0 <= solved <= n")


def write_adapter(folder: Path, card: AdapterCard, tensors: dict[str, Tensor]) -> None:
    """Writes an adapter's files into the existing, empty `folder`."""
    content = {"format": FORMAT, **dataclasses.asdict(card), "tensors_sha256": tensors_sha256(tensors)}
    content["card_sha256"] = json_sha256(content)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if card.config.kind == "lora":
        peft_layout.write_lora(folder, card.config, card.modules, plain, CARD)
    else:
        (folder / TENSORS).write_bytes(safetensors.torch.save(plain))
    (folder / CARD).write_text(json.dumps(content, indent=1) + "\n")


def read_card(folder: Path) -> AdapterCard:
    """The card in `folder`, or what is known without one; needs no policy and reads no parameters.

    Raises:
        UserError: there is no adapter, its card is damaged, edited or of another version, or peft wrote it and it
            isn't plain LoRA.
    """
    return _read(folder)[0] if _has_card(folder) else _card_of_peft(folder)


def layout(folder: Path) -> str:
    """Layout of the parameters in `folder`.

    Raises:
        UserError: as `read_card`.
    """
    if (folder / peft_layout.CONFIG).is_file():
        return "peft's: PeftModel.from_pretrained(policy, folder) reads it"
    why = "peft has no bottlenecks" if read_card(folder).config.kind == "bottleneck" else "format 1; export it again"
    return f"simplevla's own ({why})"


def read_adapter(folder: Path) -> tuple[AdapterCard, dict[str, Tensor]]:
    """Reads what `write_adapter` or peft wrote; parameters by module and part, such as `head.linear.lora_A.weight`.

    Raises:
        UserError: as `read_card`, or the parameters aren't those that were written.
    """
    if not _has_card(folder):
        return _card_of_peft(folder), peft_layout.read_lora(folder)
    card, promised, version = _read(folder)
    if card.config.kind == "lora" and version > 1:
        file = folder / peft_layout.TENSORS
        _check_peft_config(folder, card)
        tensors = peft_layout.read_lora(folder)
    else:
        file = folder / TENSORS
        tensors = _read_tensors(file)
    found = tensors_sha256(tensors)
    if found != promised:
        raise UserError(
            f"{file} has sha256 {found[:12]}, {CARD} beside it promises {promised[:12]}: it is damaged or of another "
            f"adapter. Export the adapter again; if peft wrote {file.name} anew, take {CARD} away"
        )
    tensors.pop(PROTOTYPE, None)
    return card, tensors


def list_cards(folder: Path) -> list[AdapterCard]:
    """The cards of the adapters in `folder/adapters` (a saved policy) or else in the folders of `folder`, by name.

    Raises:
        UserError: `folder` holds no adapter, or a damaged one.
    """
    inner = folder / "adapters"
    place = inner if inner.is_dir() else folder
    found = sorted(path for path in place.glob("[!.]*") if any((path / name).is_file() for name in CARDS))
    if not found:
        raise UserError(
            f"no adapter in {place}; expected folders with {' or '.join(CARDS)}, as an adapter bank saves them"
        )
    return [read_card(path) for path in found]


def check_tensors(folder: Path, tensors: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> None:
    """Compares an adapter's parameters with what its config makes of the policy.

    Raises:
        UserError: naming the first three that differ.
    """
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in expected]
    for name, tensor in tensors.items():
        if name not in expected:
            continue
        if tuple(tensor.shape) != expected[name]:
            problems.append(f"{name} has shape {list(tensor.shape)}, expected {list(expected[name])}")
        elif not tensor.is_floating_point():
            problems.append(f"{name} has type {tensor.dtype}, expected floating-point numbers")
        elif not is_finite(tensor.float()):  # in the precision of adapters
            problems.append(f"{name} holds values that aren't finite numbers")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"the adapter in {folder} doesn't fit its own config: {'; '.join(problems[:3])}{more}")


def _has_card(folder: Path) -> bool:
    """True if `folder` holds an adapter with a card; without one peft wrote it.

    Raises:
        UserError: it holds no adapter.
    """
    found = [name for name in CARDS if (folder / name).is_file()]
    if not found:
        raise UserError(
            f"{folder} holds no adapter: it has no {' and no '.join(CARDS)}. Expected a folder that an export or peft wrote"
        )
    return found[0] == CARD


def _card_of_peft(folder: Path) -> AdapterCard:
    config = peft_layout.adapter_config(folder)
    return AdapterCard(
        name=folder.resolve().name,
        config=config,
        modules=config.targets,
        instructions=(),
        base_sha256=None,
        statistics_sha256=None,
    )


def _check_peft_config(folder: Path, card: AdapterCard) -> None:
    """Compares what peft would go by with the card: both must compute the same."""
    config = card.config
    expected = {
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": sorted(card.modules),
    }
    values = peft_layout.read_config(folder)
    targets = values.get("target_modules")
    got = {**values, "target_modules": sorted(targets) if isinstance(targets, list) else targets}
    wrong = [key for key, value in expected.items() if got[key] != value]
    if wrong:
        raise UserError(
            f"{folder / peft_layout.CONFIG} has another {' and '.join(wrong)} than {CARD} beside it: one of them was "
            "edited. Export the adapter again"
        )


def _read_tensors(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise UserError(f"{file} is missing; the adapter consists of {CARD} and {file.name}")
    try:
        return safetensors.torch.load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file} is damaged ({error}); export the adapter again") from error


def _read(folder: Path) -> tuple[AdapterCard, str, int]:
    """The card, the sha256 that the parameters must have, and the format."""
    file = folder / CARD
    content = read_json(file)
    version, promised, seal = (content.pop(key, None) for key in ("format", "tensors_sha256", "card_sha256"))
    if version not in (1, FORMAT) or not isinstance(promised, str):
        raise UserError(
            f"{file} has format {brief(version)} and tensors_sha256 {brief(promised)}; this version reads the formats 1 and {FORMAT}"
        )
    if json_sha256({"format": version, **content, "tensors_sha256": promised}) != seal:
        raise UserError(f"{file} isn't as it was written (card_sha256 differs): damaged or edited. Export it again")
    try:
        return from_dict(AdapterCard, content), promised, version
    except UserError as error:
        raise UserError(f"{file} doesn't describe an adapter ({error})") from None
