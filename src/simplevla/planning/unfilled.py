"""Policies without weights, on the meta device: as large as the real ones, and made in a second."""

from pathlib import Path

import torch

from simplevla.adapters.bank import AdapterBank, BankState
from simplevla.adapters.config import AdapterConfig
from simplevla.adapters.files import BANK, read_card
from simplevla.config import SFTConfig
from simplevla.policies.base import Policy
from simplevla.policies.load import architecture
from simplevla.policies.normalization import Statistics
from simplevla.policies.openvla_oft.config import OpenVLAOFTConfig
from simplevla.policies.openvla_oft.policy import OpenVLAOFT
from simplevla.policies.openvla_oft.prompt import PROMPT
from simplevla.policies.registry import with_preset
from simplevla.policies.words import train_tokenizer
from simplevla.storage import read_as
from simplevla.suites.base import Suite


def published_openvla_oft(suite: Suite) -> Policy:
    """OpenVLA-OFT as published: 7.4 billion parameters in bfloat16, the fixed camera alone, chunks of 8."""
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


def supervised(recipe: SFTConfig, suite: Suite) -> Policy:
    """The policy that `simplevla sft` makes with this recipe."""
    with torch.device("meta"):
        return with_preset(recipe.policy).create(
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
    """The policy in `folder` without its weights, with the adapter that was being trained, if there was one.

    Raises:
        UserError: there is no policy in `folder`, or one of an unknown architecture.
    """
    # Some buffers have numbers all the same, and RL may make a parameter of one.
    policy = architecture(folder).load_unfilled(folder).to("meta")
    if (folder / BANK).is_file() and (active := read_as(folder / BANK, BankState).active) is not None:
        add_trained_adapter(policy, read_card(folder / BANK.parent / active).config)
    return policy


def add_trained_adapter(policy: Policy, config: AdapterConfig) -> None:
    """Gives `policy` one adapter, which alone is trained."""
    bank = AdapterBank(policy)
    bank.add("planned", config)
    bank.activate("planned", training=True)


def _statistics(suite: Suite) -> Statistics:
    """Placeholder statistics of the right shapes."""
    measures = {"mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0, "q01": -1.0, "q99": 1.0}
    state, action = (
        {name: [value] * len(names) for name, value in measures.items()}
        for names in (suite.spec.state_names, suite.spec.action_names)
    )
    return Statistics(state=state, action=action)
