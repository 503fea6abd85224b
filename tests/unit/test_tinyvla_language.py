import copy

import pytest
import torch
from torch import Tensor
from transformers import GPTNeoXModel
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXLayer

from simplevla.policies.tinyvla.config import LanguageConfig
from simplevla.policies.tinyvla.language import FUSED_FROM, MaskedLayer, make_language
from simplevla.policies.towers import MASKED

CONFIG = LanguageConfig(hidden_size=32, layers=3, heads=2, mlp_size=48, vocab_size=8)
READ = 4


def transformers_own(language: GPTNeoXModel) -> GPTNeoXModel:
    own = copy.deepcopy(language)
    for layer in own.layers:
        layer.__class__ = GPTNeoXLayer
    return own


def inputs(tokens: int) -> tuple[Tensor, Tensor]:
    """Embeddings [2, L, 32] and a mask [2, 1, L, L] with padding in the first row; nobody but the last READ sees them."""
    embeddings = torch.randn(2, tokens, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 1, tokens, tokens)
    mask[0, 0, :, 2:5] = MASKED
    mask[:, 0, :-READ, -READ:] = MASKED
    return embeddings, mask


def outputs(language: GPTNeoXModel, embeddings: Tensor, mask: Tensor) -> Tensor:
    return language(inputs_embeds=embeddings, attention_mask=mask, use_cache=False).last_hidden_state


@pytest.mark.parametrize("tokens", [FUSED_FROM - 40, FUSED_FROM + 8])
@pytest.mark.parametrize("read", [READ, None])
def test_outputs_and_gradients_are_those_of_transformers(tokens: int, read: int | None) -> None:
    torch.manual_seed(0)
    language = make_language(CONFIG, read=read)
    found = []
    for model in (language, transformers_own(language)):
        embeddings, mask = inputs(tokens)
        output = outputs(model, embeddings.requires_grad_(), mask)[:, -(read or tokens) :]
        output.square().sum().backward()
        weights = [parameter.grad for parameter in model.layers.parameters()]
        assert all(gradient is not None for gradient in weights)
        found.append([output, embeddings.grad, *weights])
    assert found[0][0].shape == (2, read or tokens, 32)
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)


def test_the_last_layer_computes_what_is_read_alone() -> None:
    language = make_language(CONFIG, read=READ)
    rows: list[int] = []
    for layer in language.layers:
        layer.mlp.register_forward_pre_hook(lambda _module, arguments: rows.append(arguments[0].shape[1]))
    outputs(language, *inputs(12))
    assert rows == [12, 12, READ]


@pytest.mark.parametrize("tokens", [12, FUSED_FROM + 8])
def test_bfloat16_weights_stay_bfloat16(tokens: int) -> None:
    language = make_language(CONFIG, read=READ).to(torch.bfloat16)
    embeddings, mask = inputs(tokens)
    assert outputs(language, embeddings.to(torch.bfloat16), mask).dtype == torch.bfloat16


def test_a_prompt_is_read_by_transformers_own_layers() -> None:
    prompted = LanguageConfig(hidden_size=32, layers=2, heads=2, mlp_size=48, prompt="<image> {instruction}")
    assert not any(isinstance(layer, MaskedLayer) for layer in make_language(prompted).layers)
