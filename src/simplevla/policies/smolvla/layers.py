"""Llama layers of two streams: the backbone's read what is seen, the expert's the actions, with the backbone's keys.

B batch, L tokens, d size of a head.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb, repeat_kv
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMConfig, SmolVLMVisionConfig
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMConnector, SmolVLMVisionTransformer

from simplevla.policies.smolvla.config import LanguageSizes, SmolVLAConfig

ROPE_BASE = 10_000
"""Base of the rotary positions in both streams, whatever the backbone was pretrained with."""

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines, each float32 [B, L, d]."""


class Read(NamedTuple):
    """Keys (turned by their positions) and values of tokens in one layer, each [B, key-value heads, L, d]."""

    keys: Tensor
    values: Tensor


class StreamLayer(LlamaDecoderLayer):
    """A Llama layer that is given the keys and values of tokens before its own, and gives its own back."""

    def forward(
        self,
        hidden: Tensor,
        rotary: Rotary,
        mask: Tensor,
        before: Read | None = None,
        crosses: bool = False,
        read_alone: bool = False,
    ) -> tuple[Tensor, Read]:
        """Outputs [B, L, width], and what was read.

        Args:
            mask: bool, true where a token of `hidden` sees one of those before and of its own; broadcastable to
                [B, heads, L, tokens that are seen].
            before: of the tokens before, in this layer.
            crosses: own keys and values are made of those before, as by the layer's projections, and nothing else.
            read_alone: nothing but keys and values is needed; the outputs are the inputs.
        """
        attention = self.self_attn
        normed = self.input_layernorm(hidden)
        queries = _heads(attention.q_proj(normed), attention.head_dim)
        if crosses:
            assert before is not None, "a layer that crosses has something to see"
            queries = apply_rotary_pos_emb(queries, queries, *rotary)[0]
            flat = (x.transpose(1, 2).flatten(2) for x in before)
            projections = (attention.k_proj, attention.v_proj)
            read = Read(*(_heads(p(x), attention.head_dim) for p, x in zip(projections, flat, strict=True)))
        else:
            keys = _heads(attention.k_proj(normed), attention.head_dim)
            queries, keys = apply_rotary_pos_emb(queries, keys, *rotary)
            read = Read(keys, _heads(attention.v_proj(normed), attention.head_dim))
            if before is not None:
                read = Read(*(torch.cat(pair, dim=2) for pair in zip(before, read, strict=True)))
        if read_alone:
            return hidden, read
        # In the queries' type: under autocast turned ones are float32 and others are not.
        keys, values = (repeat_kv(x.to(queries.dtype), attention.num_key_value_groups) for x in read)
        seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        hidden = hidden + attention.o_proj(seen.transpose(1, 2).flatten(2))
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), read


def _heads(x: Tensor, size: int) -> Tensor:
    """[B, heads, L, d] of [B, L, heads d]."""
    return x.unflatten(-1, (-1, size)).transpose(1, 2)


def rotary(positions: Tensor, size: int) -> Rotary:
    """Cosines and sines of positions [B, L] for heads of `size`, in float32; halves of a head turn together."""
    exponents = torch.arange(size // 2, dtype=torch.float32, device=positions.device) * (2 / size)
    angles = positions[..., None].float() / ROPE_BASE**exponents
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def time_embedding(times: Tensor, width: int, shortest: float, longest: float) -> Tensor:
    """[B, width] of times [B]: sines, then cosines, of periods in geometric progression; float64 but on `mps`."""
    dtype = torch.float32 if times.device.type == "mps" else torch.float64
    share = torch.linspace(0, 1, width // 2, dtype=dtype, device=times.device)
    angles = times.to(dtype)[:, None] * (2 * math.pi / (shortest * (longest / shortest) ** share))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _llama(sizes: LanguageSizes, width: int, mlp: int, layers: int, vocab: int) -> LlamaModel:
    config = LlamaConfig(
        hidden_size=sizes.heads * sizes.head_dim,
        num_hidden_layers=layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.key_value_heads,
        head_dim=sizes.head_dim,
        intermediate_size=mlp,
        vocab_size=vocab,
        rms_norm_eps=sizes.rms_norm_eps,
        initializer_range=sizes.init_std,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    # The heads needn't divide the width, though the library asks for it at first.
    config.hidden_size = width
    model = LlamaModel(config)
    for layer in model.layers:
        layer.__class__ = StreamLayer
    del model.rotary_emb
    return model


def make_language(sizes: LanguageSizes) -> LlamaModel:
    """The backbone's language model without its head."""
    return _llama(sizes, sizes.hidden_size, sizes.mlp_size, sizes.layers, sizes.vocab_size)


def make_expert(config: SmolVLAConfig) -> LlamaModel:
    """The action expert: a Llama without words, whose crossing layers make keys and values of the backbone's."""
    sizes = config.language
    expert = _llama(sizes, config.expert_hidden_size, config.expert_mlp_size, config.expert_layers, vocab=1)
    # Not None: gradient checkpointing looks for embeddings.
    expert.embed_tokens = nn.Identity()
    width = sizes.key_value_heads * sizes.head_dim
    for number, layer in enumerate(expert.layers):
        if config.crosses(number):
            for name in ("k_proj", "v_proj"):
                setattr(layer.self_attn, name, _linear(width, width, sizes.init_std))
    return expert


def _linear(inputs: int, outputs: int, std: float) -> nn.Linear:
    made = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(made.weight, std=std)
    return made


def make_vision(config: SmolVLAConfig) -> tuple[SmolVLMVisionTransformer, SmolVLMConnector]:
    """The vision tower and the connector to the language model's width."""
    sizes, std = config.vision, config.language.init_std
    vision = SmolVLMVisionConfig(
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.mlp_size,
        layer_norm_eps=sizes.layer_norm_eps,
        initializer_range=std,
    )
    text = LlamaConfig(hidden_size=config.language.hidden_size, num_attention_heads=1)
    whole = SmolVLMConfig(vision_config=vision, text_config=text, scale_factor=sizes.scale_factor)
    connector = SmolVLMConnector(whole)
    nn.init.normal_(connector.modality_projection.proj.weight, std=std)
    return SmolVLMVisionTransformer(vision), connector


def expert_layer(config: SmolVLAConfig, layer: int) -> int | None:
    """Number of the expert's layer that stands at the backbone's `layer`; None where it has fewer."""
    every = config.language.layers // config.expert_layers
    return layer // every if layer % every == 0 else None
