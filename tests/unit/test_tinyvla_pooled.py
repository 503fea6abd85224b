import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXModel

from simplevla.policies.tinyvla.config import LanguageConfig
from simplevla.policies.tinyvla.language import make_language
from simplevla.policies.tinyvla.pooled import PooledCondition, masked_mean
from simplevla.policies.tinyvla.presets import make_preset
from simplevla.policies.tinyvla.prompted import read_prompt
from simplevla.policies.tinyvla.tokens import InstructionTokens

WIDTH = 16


def language() -> GPTNeoXModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return GPTNeoXModel(GPTNeoXConfig(**sizes, vocab_size=20, attn_implementation="sdpa")).eval().double()


def condition() -> PooledCondition:
    torch.manual_seed(1)
    return PooledCondition(WIDTH, 3).double()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vector(model: GPTNeoXModel, pooled: PooledCondition, *inputs: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    return pooled(masked_mean(*read_prompt(model, *inputs)), state)


def test_the_mean_counts_what_is_marked_and_nothing_else() -> None:
    outputs = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]], [[1.0, 0.0], [2.0, 0.0], [6.0, 3.0]]])
    counted = torch.tensor([[True, True, False], [True, True, True]])
    assert masked_mean(outputs, counted).tolist() == [[2.0, 3.0], [3.0, 1.0]]


def test_a_row_in_a_padded_batch_gets_what_it_gets_alone() -> None:
    model, pooled = language(), condition()
    before, views, after = random(2, WIDTH, seed=4), random(2, 3, WIDTH), random(2, 7, WIDTH, seed=2)
    state = random(2, 3, seed=3)
    after[0, 4:] = 1e3  # whatever stands in the padding
    valid = torch.arange(7)[None] < torch.tensor([[4], [7]])
    together = vector(model, pooled, before, views, after, valid, state=state)
    first = vector(model, pooled, before, views[:1], after[:1, :4], valid[:1, :4], state=state[:1])
    second = vector(model, pooled, before, views[1:], after[1:], valid[1:], state=state[1:])
    torch.testing.assert_close(together, torch.cat([first, second]), atol=1e-12, rtol=0)


def test_the_condition_by_hand_from_outputs_of_the_language_model() -> None:
    model, pooled = language(), condition()
    before, views, after = random(1, WIDTH, seed=4), random(1, 3, WIDTH), random(1, 3, WIDTH, seed=2)
    state = random(1, 3, seed=3)
    sequence = torch.cat([before, views[0], after[0]])[None]
    causal = torch.full((7, 7), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    outputs = model(inputs_embeds=sequence, attention_mask=causal, use_cache=False).last_hidden_state[0]
    mean = outputs.sum(dim=0) / 7
    spread = ((mean - mean.mean()).square().mean() + 1e-5).sqrt()
    expected = pooled.combine.weight @ torch.cat([(mean - mean.mean()) / spread, state[0]]) + pooled.combine.bias
    got = vector(model, pooled, before, views, after, torch.ones(1, 3, dtype=torch.bool), state=state)
    torch.testing.assert_close(got[0], expected, atol=1e-10, rtol=0)


def test_the_prompt_is_split_where_the_views_go() -> None:
    words = ["see", ":", "do", "this", "now", "[UNK]"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = InstructionTokens(tokenizer, 8, "see: <image>\n{instruction} now")
    assert tokens.before == [0, 1]
    assert tokens.ids(" do this ") == [2, 3, 4]
    ids, valid = tokens.batch(["do", "do this"])
    assert ids.tolist() == [[2, 4, 0], [2, 3, 4]]
    assert valid.tolist() == [[True, True, False], [True, True, True]]
    assert InstructionTokens(tokenizer, 8).before == []


@pytest.mark.parametrize(
    "prompt", ["do {instruction}", "<image> do", "<image><image>{instruction}", "{instruction}<image>"]
)
def test_a_prompt_without_its_two_places_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="expected '<image>'"):
        LanguageConfig(prompt=prompt)


@pytest.mark.parametrize(
    ("preset", "embedding", "per_layer"),
    # Words times width; then per layer 12 width^2 of matrices and 13 width of biases and norms.
    [
        ("tinyvla_s", 50304 * 512, (6, 512)),
        ("tinyvla_b", 50304 * 1024, (24, 1024)),
        ("tinyvla_h", 50304 * 2048, (16, 2048)),
    ],
)
def test_published_sizes_are_those_of_pythia(preset: str, embedding: int, per_layer: tuple[int, int]) -> None:
    vision, language_config = make_preset(preset)[:2]
    layers, width = per_layer
    with torch.device("meta"):
        model = make_language(language_config)
    count = sum(p.numel() for p in model.parameters())
    assert count == embedding + layers * (12 * width**2 + 13 * width) + 2 * width
    assert (vision.kind, (vision.image_size // vision.patch_size) ** 2) == ("clip", 576)
