"""Tokens of the prompt, as in OpenVLA-OFT (arXiv 2502.19645) and its public code."""

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from simplevla.errors import UserError

PROMPT = "In: What action should the robot take to {instruction}?\nOut:"
BEGIN, STOP, SPACE = 1, 2, 29871
"""Llama's ids of <s>, </s> and the lone space that the training's prompts end with."""
PADDING_ID = 0


class PromptTokens:
    """Tokenizes instructions, each distinct one once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._ids: dict[str, list[int]] = {}

    def ids(self, instruction: str) -> list[int]:
        """Token ids of the prompt, <s> not among them.

        Raises:
            UserError: an empty instruction.
        """
        if instruction not in self._ids:
            if not instruction.strip():
                raise UserError(f"instruction {instruction!r} is empty; expected what the robot should do")
            text = PROMPT.format(instruction=instruction.lower())
            ids = self.tokenizer.encode(text, add_special_tokens=False).ids
            self._ids[instruction] = ids if ids[-1] == SPACE else [*ids, SPACE]
        return self._ids[instruction]

    def batch(self, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(ids int64 [D, L], valid bool [D, L]) of D instructions, padded on the *left*: all end at the same place."""
        rows = [self.ids(instruction) for instruction in instructions]
        length = max(len(row) for row in rows)
        ids = torch.tensor([[PADDING_ID] * (length - len(row)) + row for row in rows])
        valid = torch.tensor([[False] * (length - len(row)) + [True] * len(row) for row in rows])
        return ids, valid
