import copy
import os

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import small_tinyvla as small
from simplevla.policies.base import Sampling
from simplevla.policies.linear import ROWS, Linear, linear, through_onednn

ONEDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def products_by_onednn(input: torch.Tensor, weight: torch.Tensor) -> int:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        linear(input, weight, None)
    return sum(event.name == "mkldnn::_linear_pointwise" for event in profile.events() or [])


@pytest.mark.parametrize("shape", [(5, 16), (2, 3, 16), (2, 1, 4, 16)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_products_and_gradients_are_torchs(shape: tuple[int, ...], with_bias: bool) -> None:
    outcomes = []
    for function in (linear, F.linear):
        leaves = [numbers(*shape), numbers(8, 16, seed=1), numbers(8, seed=2)]
        input, weight, bias = (leaf.requires_grad_() for leaf in leaves)
        output = function(input, weight, bias if with_bias else None)
        (output * numbers(*output.shape, seed=3)).sum().backward()
        outcomes.append([output, *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    assert len(outcomes[0]) == 3 + with_bias
    for ours, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_frozen_weight_gets_no_gradient_and_passes_one_on() -> None:
    layer = Linear(16, 8)
    layer.requires_grad_(False)
    input = numbers(5, 16).requires_grad_()
    layer(input).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is None
    torch.testing.assert_close(input.grad, layer.weight.sum(dim=0).expand(5, 16))


@ONEDNN
def test_float32_is_multiplied_by_onednn_and_nothing_else() -> None:
    assert products_by_onednn(numbers(5, 16), numbers(8, 16)) == 1
    assert products_by_onednn(numbers(5, 16).double(), numbers(8, 16).double()) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(numbers(5, 16), numbers(8, 16), None).dtype == torch.bfloat16
    assert linear(numbers(5, 16).to("meta"), numbers(8, 16).to("meta"), None).shape == (5, 8)


def test_batches_of_many_sizes_need_few_compiled_products() -> None:
    assert int(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]) >= 4096
    policy, sizes = small.make(), set[int]()
    policy.register_forward_pre_hook(lambda _module, arguments: sizes.add(len(arguments[0])))
    for count in range(1, 3 * ROWS + 1):
        batch = small.observations(["press it"] * count)
        sample = policy.act(batch, Sampling(), [np.random.default_rng(i) for i in range(count)])
        assert len(sample.trace) == len(policy.score(batch, sample.trace, Sampling())[0]) == count
    assert sizes == {*range(1, ROWS + 1), 2 * ROWS, 3 * ROWS}


def test_layers_keep_their_parameters_and_names() -> None:
    class Special(nn.Linear):
        pass

    module = nn.Sequential(nn.Linear(16, 8), nn.GELU(), Special(8, 4))
    before, input = copy.deepcopy(module), numbers(5, 16)
    through_onednn(module)
    assert [type(layer) for layer in module] == [Linear, nn.GELU, Special]
    assert list(module.state_dict()) == list(before.state_dict())
    assert isinstance(module[0], nn.Linear), "adapters look for these"
    torch.testing.assert_close(module(input), before(input))
