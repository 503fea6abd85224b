"""Small SmolVLA policies for tests; observations are small_tinyvla's."""

from dataclasses import replace
from typing import Any

import torch

import small_tinyvla
from simplevla.policies.smolvla.config import LanguageSizes, SmolVLAConfig, VisionSizes
from simplevla.policies.smolvla.policy import SmolVLA
from simplevla.policies.smolvla.prompt import START
from simplevla.policies.words import train_tokenizer

CONFIG = SmolVLAConfig(
    cameras=small_tinyvla.CAMERAS,
    features=("observation.images.image", "observation.images.image2"),
    state_dim=3,
    action_dim=2,
    chunk_length=3,
    predicted_length=4,
    max_state_dim=5,
    max_action_dim=6,
    image_size=32,
    steps=3,
    expert_layers=4,
    backbone="",
    vision=VisionSizes(image_size=32, patch_size=8, hidden_size=16, layers=1, heads=2, mlp_size=24, scale_factor=2),
    language=LanguageSizes(
        hidden_size=32, layers=4, heads=4, key_value_heads=2, head_dim=8, mlp_size=32, vocab_size=400, init_std=0.2
    ),
)


def make(seed: int = 0, **changes: Any) -> SmolVLA:
    """A random policy with a frozen backbone unless told otherwise."""
    config = replace(CONFIG, **changes)
    tokenizer = train_tokenizer(small_tinyvla.INSTRUCTIONS, config.language.vocab_size)
    if config.image_special_tokens:
        tokenizer.add_special_tokens(list(START))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmolVLA(config, small_tinyvla.plain_statistics(3, 2), tokenizer)
