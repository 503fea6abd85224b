"""The GPT-NeoX language model (Pythia's); its last layer computes only the outputs that are read.

B batch, L tokens, Q of them read, N heads, D dimensions of a head, W = N * D width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPTNeoXConfig, GPTNeoXModel
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXAttention, GPTNeoXLayer, rotate_half

from simplevla.policies.tinyvla.config import LanguageConfig

FUSED_FROM = 64
"""Tokens from which PyTorch's fused attention is the faster one on CPU; below it takes up to twice as long."""


def make_language(config: LanguageConfig, read: int | None = None) -> GPTNeoXModel:
    """Randomly initialised language model that computes its last `read` outputs; None computes all.

    It takes an additive mask [B, 1, L, L]. With a prompt it is transformers' own, which attends causally without one.
    """
    language = GPTNeoXModel(
        GPTNeoXConfig(
            hidden_size=config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.mlp_size,
            vocab_size=config.vocab_size,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            initializer_range=config.init_std,
            attn_implementation="sdpa",
        )
    )
    if not config.prompt:
        for layer in language.layers:
            layer.__class__ = MaskedLayer
        language.layers[-1].read = read
    return language


class MaskedLayer(GPTNeoXLayer):
    """GPT-NeoX layer under an explicit mask, for the outputs of the last `read` tokens; all tokens are attended to."""

    read: int | None = None

    def forward(  # fewer arguments than the base class: no cache
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        **_: object,
    ) -> Tensor:
        """[B, Q, W] from [B, L, W]."""
        first = 0 if self.read is None else hidden_states.shape[1] - self.read
        attended = _attend(
            self.attention, self.input_layernorm(hidden_states), attention_mask, position_embeddings, first
        )
        hidden_states = hidden_states[:, first:]
        return hidden_states + attended + self.mlp(self.post_attention_layernorm(hidden_states))


def _attend(
    attention: GPTNeoXAttention, hidden: Tensor, mask: Tensor, rotation: tuple[Tensor, Tensor], first: int
) -> Tensor:
    """[B, L - first, W]: what the tokens from number `first` on read from all, hidden [B, L, W]."""
    # The weights hold query, key and value of one head after another. One copy makes each of them contiguous.
    projected = attention.query_key_value(hidden).unflatten(2, (-1, 3, attention.head_size))
    query, key, value = projected.permute(3, 0, 2, 1, 4).contiguous()
    query = _rotate(query[:, :, first:], *(part[:, first:] for part in rotation))
    key = _rotate(key, *rotation)
    mask = mask[:, :, first:].to(query.dtype)
    if hidden.device.type == "cpu" and hidden.shape[1] < FUSED_FROM:
        scores = torch.add(mask, torch.matmul(query, key.transpose(2, 3)), alpha=attention.scaling)
        attended = torch.matmul(scores.softmax(dim=-1), value)
    else:
        attended = F.scaled_dot_product_attention(query, key, value, mask, scale=attention.scaling)
    return attention.dense(attended.transpose(1, 2).flatten(2))


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of the first dimensions of [B, N, L, D]; cos and sin [1, L, dimensions]."""
    turned, kept = heads.split([cos.shape[-1], heads.shape[-1] - cos.shape[-1]], dim=-1)
    return torch.cat([turned * cos + rotate_half(turned) * sin, kept], dim=-1)
