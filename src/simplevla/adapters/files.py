"""An adapter as a folder: `adapter.safetensors` (parameters, prototype) and `adapter.json` (everything else)."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from simplevla.adapters.config import AdapterConfig
from simplevla.adapters.embedding import DIMENSIONS
from simplevla.adapters.fingerprint import json_sha256, tensors_sha256
from simplevla.config import from_dict

FORMAT = 1
"""Raised when the layout changes; an older program then refuses by name instead of misreading."""
TENSORS, CARD = "adapter.safetensors", "adapter.json"
PROTOTYPE = "prototype"
"""Key of the prototype among the tensors; parameters' names contain dots."""


@dataclass(frozen=True, kw_only=True)
class AdapterCard:
    """All about an adapter but its parameters; the content of `adapter.json`."""

    name: str
    config: AdapterConfig
    modules: tuple[str, ...]
    """The modules of the policy that it changes."""
    instructions: tuple[str, ...]
    """The tasks it is for, in the policy's words."""
    base_sha256: str
    """Of the base weights that it was trained on."""
    statistics_sha256: str
    """Of the normalisation statistics that it was trained with."""
    frozen: bool = False
    """Not to be trained any more."""
    sampling: dict[str, Any] | None = None
    """How actions were drawn when `success` was measured: `temperature`, `greedy`."""
    seed: int | None = None
    """Of the training run."""
    solved: int | None = None
    """Episodes solved in the last evaluation, of `n`."""
    n: int | None = None

    def __post_init__(self) -> None:
        if (self.solved is None) != (self.n is None):
            raise ValueError(f"adapter {self.name!r}: solved is {self.solved}, n is {self.n}; expected both or neither")
        if self.solved is not None and self.n is not None and not 0 <= self.solved <= self.n:
            raise ValueError(f"adapter {self.name!r}: {self.solved} solved of n = {self.n}; expected 0 <= solved <= n")


def write_adapter(folder: Path, card: AdapterCard, tensors: dict[str, Tensor]) -> None:
    """Write both files into the existing, empty `folder`."""
    content = {"format": FORMAT, **dataclasses.asdict(card), "tensors_sha256": tensors_sha256(tensors)}
    content["card_sha256"] = json_sha256(content)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    (folder / TENSORS).write_bytes(safetensors.torch.save(plain))
    (folder / CARD).write_text(json.dumps(content, indent=1) + "\n")


def read_card(folder: Path) -> AdapterCard:
    """The card in `folder`; needs no policy and reads no parameters.

    Raises:
        ValueError: there is no adapter, or its card is damaged, edited or of another version.
    """
    return _read(folder)[0]


def read_adapter(folder: Path) -> tuple[AdapterCard, dict[str, Tensor]]:
    """What `write_adapter` wrote.

    Raises:
        ValueError: as `read_card`, or the parameters aren't those that were written.
    """
    card, promised = _read(folder)
    file = folder / TENSORS
    if not file.is_file():
        raise ValueError(f"{file} is missing; an adapter consists of {CARD} and {TENSORS}")
    try:
        tensors = safetensors.torch.load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}); export the adapter again") from error
    found = tensors_sha256(tensors)
    if found != promised:
        raise ValueError(
            f"{file} has sha256 {found[:12]}, {CARD} beside it promises {promised[:12]}: it is damaged or of another "
            "adapter. Export the adapter again"
        )
    return card, tensors


def list_cards(folder: Path) -> list[AdapterCard]:
    """The cards of the adapters in `folder/adapters` (a saved policy) or else in the folders of `folder`, by name.

    Raises:
        ValueError: `folder` holds no adapter, or a damaged one.
    """
    inner = folder / "adapters"
    place = inner if inner.is_dir() else folder
    found = sorted(path.parent for path in place.glob(f"*/{CARD}") if not path.parent.name.startswith("."))
    if not found:
        raise ValueError(f"no adapter in {place}; expected folders with {CARD}, as an adapter bank saves them")
    return [read_card(path) for path in found]


def check_tensors(
    folder: Path, tensors: dict[str, Tensor], vector: Tensor | None, expected: dict[str, tuple[int, ...]]
) -> None:
    """Compare an adapter's parameters and prototype with what its config makes of the policy.

    Raises:
        ValueError: naming the first three that differ.
    """
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in expected]
    for name, tensor in tensors.items():
        if name not in expected:
            continue
        if tuple(tensor.shape) != expected[name]:
            problems.append(f"{name} has shape {list(tensor.shape)}, expected {list(expected[name])}")
        elif not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            problems.append(f"{name} holds values that aren't finite numbers")
    if vector is not None and tuple(vector.shape) != (DIMENSIONS,):
        problems.append(f"the prototype has shape {list(vector.shape)}, expected [{DIMENSIONS}]")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"the adapter in {folder} doesn't fit its own config: {'; '.join(problems[:3])}{more}")


def _read(folder: Path) -> tuple[AdapterCard, str]:
    """The card, and the sha256 that the parameters must have."""
    file = folder / CARD
    if not file.is_file():
        raise ValueError(f"{folder} holds no adapter: it has no {CARD}. Expected a folder that an export wrote")
    try:
        content = json.loads(file.read_text())
        version, promised, seal = (content.pop(key) for key in ("format", "tensors_sha256", "card_sha256"))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error!r}); export the adapter again") from error
    if version != FORMAT:
        raise ValueError(f"{file} has format {version}; this version reads {FORMAT}")
    if json_sha256({"format": version, **content, "tensors_sha256": promised}) != seal:
        raise ValueError(f"{file} isn't as it was written (card_sha256 differs): damaged or edited. Export it again")
    return _card(file, content), promised


def _card(file: Path, content: dict[str, Any]) -> AdapterCard:
    try:
        content["config"] = from_dict(AdapterConfig, content["config"])
        return from_dict(AdapterCard, content)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} doesn't describe an adapter ({error})") from error
