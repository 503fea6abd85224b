"""The files of a policy folder: written whole or not at all, and checked against each other when read."""

import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_core import from_json
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from simplevla.errors import UserError, brief
from simplevla.policies.normalization import Statistics
from simplevla.policies.trained_on import FILE, TrainedOn, read_stages, stages_as_json
from simplevla.storage import atomic_file, parse_json, read_json, write_atomically

FILES = ("config.json", "statistics.json", "tokenizer.json", "model.safetensors")
BESIDE = ("config.json", "statistics.json", "tokenizer.json", FILE)
"""The metadata of model.safetensors hold the sha256 of each, so that another policy's of the same sizes is noticed."""
METADATA = "simplevla"
"""Only key of the metadata of `model.safetensors`."""


@dataclass(frozen=True, kw_only=True)
class PolicyFiles:
    """Contents of a policy folder."""

    folder: Path
    config: dict[str, Any]
    statistics: Statistics
    tokenizer: Tokenizer
    tensors: dict[str, Tensor]
    trained_on: tuple[TrainedOn, ...]
    written: dict[str, str]
    """File -> its sha256 when the tensors were written; earlier versions didn't say."""

    def check_tensors(self, expected: Mapping[str, Tensor]) -> None:
        """Checks names, shapes and dtypes against the policy's; refuses infinite numbers and another policy's files.

        An edited config.json is warned of: it may be meant.

        Raises:
            UserError: naming the first three that differ, or the file.
        """
        got = self.tensors
        problems = [f"{name} is missing" for name in expected if name not in got]
        problems += [f"{name} is unknown" for name in got if name not in expected]
        problems += [
            f"{name} has shape {list(got[name].shape)}, expected {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in got and got[name].shape != tensor.shape
        ]
        problems += [
            f"{name} is {got[name].dtype}, expected {tensor.dtype}"
            for name, tensor in expected.items()
            if name in got and got[name].dtype != tensor.dtype
        ]
        broken = [f"{name} holds NaN or infinity" for name, tensor in got.items() if not is_finite(tensor)]
        if broken:
            more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
            raise UserError(
                f"{self.folder / 'model.safetensors'} is no policy that can act: {'; '.join(broken[:3])}{more}. The training that wrote it "
                "diverged; use an earlier checkpoint, and a smaller learning rate."
            )
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise UserError(
                f"{self.folder / 'model.safetensors'} doesn't fit the config.json beside it: {'; '.join(problems[:3])}{more}. "
                "Are both files of the same policy?"
            )
        self._check_written()

    def fill(self, policy: nn.Module) -> None:
        """Gives a policy without numbers its tensors; they are checked first, as `check_tensors` does.

        Copies lie where torch puts tensors. In the file they lie anywhere, and on some processors sums over the same
        numbers differ in the last digit then.
        """
        self.check_tensors(policy.state_dict())
        policy.load_state_dict({name: tensor.clone() for name, tensor in self.tensors.items()}, assign=True)

    def _check_written(self) -> None:
        for name in BESIDE:
            file = self.folder / name
            if name not in self.written or not file.is_file() or _sha256(file.read_bytes()) == self.written[name]:
                continue
            found = f"{file} isn't the one that model.safetensors beside it was saved with"
            if name != "config.json":
                raise UserError(f"{found}: it is another policy's, or was edited. Copy the whole folder again")
            warnings.warn(f"{found}. If that isn't meant, copy the whole folder again.", stacklevel=4)


def is_finite(tensor: Tensor) -> bool:
    """True if all numbers are finite; makes no copy, since a policy may fill the memory."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    low, high = tensor.detach().aminmax()
    return math.isfinite(low) and math.isfinite(high)


def save_files(
    folder: Path,
    architecture: str,
    config: dict[str, Any],
    statistics: Statistics,
    tokenizer: Tokenizer,
    tensors: Mapping[str, Tensor],
    trained_on: tuple[TrainedOn, ...],
) -> None:
    """Writes a policy's files into `folder`, the tensors last."""
    folder.mkdir(parents=True, exist_ok=True)
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    contents = {
        "tokenizer.json": tokenizer.to_str().encode(),
        "statistics.json": json.dumps(statistics.to_dict(), indent=1).encode(),
        FILE: stages_as_json(trained_on),
        "config.json": json.dumps(config, indent=1).encode(),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
    written = {name: _sha256(content) for name, content in contents.items()}
    with atomic_file(folder / "model.safetensors") as temporary:
        # One key: safetensors writes several in an order that changes, and equal policies have equal bytes.
        save_file(on_cpu, temporary, metadata={METADATA: json.dumps({"architecture": architecture, "beside": written})})


def load_files(folder: Path) -> PolicyFiles:
    """Reads what `save_files` wrote.

    Raises:
        UserError: a missing or damaged file.
    """
    for name in FILES:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing; a policy consists of {', '.join(FILES)}")
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    file = folder / "model.safetensors"
    try:
        tensors = load_file(file)
        with safe_open(file, framework="pt") as opened:
            metadata = (opened.metadata() or {}).get(METADATA, "{}")
    except SafetensorError as error:
        raise UserError(f"{file} is damaged ({error}); use another checkpoint") from error
    written = parse_json(metadata, f"the metadata of {file}").get("beside", {})
    if not isinstance(written, dict):
        raise UserError(f"the metadata of {file} have beside = {brief(written)}; use another checkpoint")
    return PolicyFiles(
        folder=folder,
        config=read_json(folder / "config.json"),
        statistics=Statistics.load(folder / "statistics.json"),
        tokenizer=tokenizer,
        tensors=tensors,
        trained_on=read_stages(folder / FILE),
        written=written,
    )


def read_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer in `file`.

    Raises:
        UserError: there is none, or a damaged one.
    """
    if not file.is_file():
        raise UserError(f"{file} is missing; copy the whole folder again")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more specific
        raise UserError(f"{file} is damaged ({error}); use another checkpoint") from error


def check_token_ids(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuses a tokenizer that gives ids of `vocab_size` or above, which have no row in the word embedding."""
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", -1))
    if largest >= vocab_size:
        raise UserError(
            f"the tokenizer has the id {largest} for {brief(token)}; expected ids below the policy's vocab_size, {vocab_size}. "
            "Are tokenizer.json and config.json of the same policy?"
        )


def _sha256(content: bytes) -> str:
    """Fingerprint of a JSON value, however it is laid out."""
    return hashlib.sha256(json.dumps(from_json(content), sort_keys=True).encode()).hexdigest()
