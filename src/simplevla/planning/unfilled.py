"""Policies without weights, on the meta device: as large as the real ones, and made in a second."""

from pathlib import Path

import torch

from simplevla.adapters.bank import AdapterBank, BankState
from simplevla.adapters.config import AdapterConfig
from simplevla.adapters.files import read_card
from simplevla.config import SFTConfig
from simplevla.errors import UserError, brief
from simplevla.policies.base import Policy
from simplevla.policies.files import read_tokenizer
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
from simplevla.storage import read_as, read_json
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
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder} holds no policy: it has no {file.name}; expected a folder such as runs/NAME/policy")
    architecture = read_json(file).get("architecture")
    statistics = Statistics.load(folder / "statistics.json")
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    policy: Policy
    if architecture == OPENVLA_OFT:
        policy = OpenVLAOFT.unfilled(read_as(file, OpenVLAOFTConfig), statistics, tokenizer)
    elif architecture == TINYVLA:
        with torch.device("meta"):
            policy = TinyVLA(read_as(file, TinyVLAConfig), statistics, tokenizer)
    else:
        raise UserError(
            f"{file} is of architecture {brief(architecture)}; this version plans for {TINYVLA!r} and {OPENVLA_OFT!r}"
        )
    if (folder / BANK).is_file() and (active := read_as(folder / BANK, BankState).active) is not None:
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
