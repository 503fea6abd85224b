"""Policies without weights, on the meta device: as large as the real ones, and made in a second."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from simplevla.adapters.bank import AdapterBank
from simplevla.adapters.config import AdapterConfig
from simplevla.adapters.files import read_card
from simplevla.config import SFTConfig, from_dict
from simplevla.errors import UserError
from simplevla.policies.base import Policy
from simplevla.policies.load import BANK
from simplevla.policies.normalization import Statistics
from simplevla.policies.openvla_oft.config import ARCHITECTURE as OPENVLA_OFT
from simplevla.policies.openvla_oft.config import OpenVLAOFTConfig
from simplevla.policies.openvla_oft.policy import OpenVLAOFT
from simplevla.policies.openvla_oft.prompt import PROMPT
from simplevla.policies.tinyvla.config import ARCHITECTURE as TINYVLA
from simplevla.policies.tinyvla.config import TinyVLAConfig
from simplevla.policies.tinyvla.policy import TinyVLA
from simplevla.policies.tinyvla.tokens import train_tokenizer
from simplevla.suites.base import Suite


def published_openvla_oft(suite: Suite) -> Policy:
    """OpenVLA-OFT as published: 7.4 billion parameters in bfloat16, the fixed camera alone, chunks of 8 (SPEC 2)."""
    spec = suite.spec
    config = OpenVLAOFTConfig(
        cameras=tuple(spec.cameras)[:1],
        state_dim=len(spec.state_names),
        action_dim=len(spec.action_names),
        action_mask=(True,) * len(spec.action_names),
        dtype="bfloat16",
    )
    # A word is about a token, as in Llama's vocabulary.
    prompts = [PROMPT.format(instruction=task.instruction.lower()) for task in suite.tasks]
    return OpenVLAOFT.unfilled(config, _statistics(suite), train_tokenizer(prompts, config.language.vocab_size))


def supervised_tinyvla(recipe: SFTConfig, suite: Suite) -> Policy:
    """What `simplevla sft` with this recipe makes."""
    with torch.device("meta"):
        return TinyVLA.create(
            recipe.policy,
            cameras=list(suite.spec.cameras),
            state_dim=len(suite.spec.state_names),
            action_dim=len(suite.spec.action_names),
            chunk_length=recipe.chunk_length,
            instructions=[task.instruction for task in suite.tasks],
            statistics=_statistics(suite),
            head=recipe.head,
        )


def saved(folder: Path) -> Policy:
    """A saved policy without its weights, which aren't read; with the adapter that was being trained, if there was one.

    Raises:
        UserError: there is no policy in `folder`, or one of an unknown architecture.
    """
    config = _json(folder / "config.json")
    statistics = Statistics.from_dict(_json(folder / "statistics.json"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    policy: Policy
    if config.get("architecture") == OPENVLA_OFT:
        policy = OpenVLAOFT.unfilled(from_dict(OpenVLAOFTConfig, config), statistics, tokenizer)
    elif config.get("architecture") == TINYVLA:
        with torch.device("meta"):
            policy = TinyVLA(from_dict(TinyVLAConfig, config), statistics, tokenizer)
    else:
        raise UserError(
            f"{folder / 'config.json'} is of architecture {config.get('architecture')!r}; this version plans for "
            f"{TINYVLA!r} and {OPENVLA_OFT!r}"
        )
    if (folder / BANK).is_file() and (active := _json(folder / BANK)["active"]) is not None:
        add_adapter(policy, read_card(folder / BANK.parent / active).config)
    return policy


def add_adapter(policy: Policy, config: AdapterConfig) -> None:
    """One adapter, which alone is trained."""
    bank = AdapterBank(policy)
    bank.add("planned", config)
    bank.activate("planned", training=True)


def _statistics(suite: Suite) -> Statistics:
    """Of the right shapes."""
    measures = {"mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0, "q01": -1.0, "q99": 1.0}
    state, action = (
        {name: [value] * len(names) for name, value in measures.items()}
        for names in (suite.spec.state_names, suite.spec.action_names)
    )
    return Statistics(state=state, action=action)


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(
            f"{file.parent} holds no policy: it has no {file.name}; expected a folder such as runs/NAME/policy"
        )
    values: dict[str, Any] = json.loads(file.read_text())
    return values
