"""A policy as somebody else would add one: a class of its own, known by one line in the registry."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from fake_policy import FakePolicy
from simplevla.policies.files import load_files, read_tokenizer, save_files
from simplevla.policies.normalization import Statistics
from simplevla.policies.words import train_tokenizer
from simplevla.storage import read_json


class ToyPolicy(FakePolicy):
    """The fake suite's policy with all that the registry's users ask for."""

    presets = ("toy_small",)
    not_decayed = ("linear.weight",)

    def __init__(self, sizes: dict[str, Any], statistics: Statistics, tokenizer: Tokenizer, seed: int = 0) -> None:
        super().__init__(sizes["chunk_length"], sizes["action_dim"], seed)
        self.sizes, self.statistics, self.tokenizer = sizes, statistics, tokenizer

    @classmethod
    def create(
        cls,
        preset: str,
        *,
        cameras: Sequence[str],
        state_dim: int,
        action_dim: int,
        chunk_length: int,
        instructions: Iterable[str],
        statistics: Statistics,
        head: str = "tokens",
        seed: int = 0,
    ) -> "ToyPolicy":
        sizes = {"architecture": "toy", "chunk_length": chunk_length, "action_dim": action_dim}
        return cls(sizes, statistics, train_tokenizer(instructions, 300), seed)

    def save_alone(self, folder: Path) -> None:
        tensors = self.state_dict()
        save_files(folder, "toy", self.sizes, self.statistics, self.tokenizer, tensors, self.trained_on)

    @classmethod
    def load(cls, folder: Path) -> "ToyPolicy":
        files = load_files(folder)
        policy = cls(files.config, files.statistics, files.tokenizer)
        files.check_tensors(policy.state_dict())
        policy.load_state_dict(files.tensors)
        policy.trained_on = files.trained_on
        return policy

    @classmethod
    def load_unfilled(cls, folder: Path) -> "ToyPolicy":
        with torch.device("meta"):
            sizes, statistics = read_json(folder / "config.json"), Statistics.load(folder / "statistics.json")
            return cls(sizes, statistics, read_tokenizer(folder / "tokenizer.json"))

    def adapter_groups(self) -> dict[str, list[str]]:
        return {"head": ["linear"]}
