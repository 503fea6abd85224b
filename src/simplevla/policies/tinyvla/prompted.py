"""A prompt with the views' tokens spliced in, read by a language model with causal attention, as TinyVLA does.

B batch, V tokens of the views, P tokens of the prompt before them, T after them, W width of the language model.
"""

import torch
from torch import Tensor
from transformers import GPTNeoXModel


def read_prompt(
    language: GPTNeoXModel, before: Tensor, views: Tensor, after: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """(outputs [B, P + V + T, W], valid bool [B, P + V + T]) of the language model.

    Padding needs no attention mask: it stands after everything else, and causal attention lets nothing see it. Its own
    outputs mean nothing, and the returned mask leaves them out.

    Args:
        language: run with causal attention.
        before: [P, W], the embedded prompt before the views, the same for every row.
        views: [B, V, W], the cameras' tokens.
        after: [B, T, W], the embedded rest of the prompt, padded on the right.
        valid: bool [B, T], false where `after` is padding.
    """
    rows = len(views)
    inputs = torch.cat([before.expand(rows, -1, -1), views, after], dim=1)
    outputs = language(inputs_embeds=inputs, use_cache=False).last_hidden_state
    always = valid.new_ones(rows, inputs.shape[1] - after.shape[1])
    return outputs, torch.cat([always, valid], dim=1)
