"""Instructions to token ids."""

import warnings
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from simplevla.errors import UserError, brief

START, END = ("<fake_token_around_image>", "<global-img>"), ("<fake_token_around_image>",)
"""Special tokens before and after a picture's."""


class PromptTokens:
    """Tokenizes instructions, each distinct one once."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self._ids: dict[str, list[int]] = {}

    def ids(self, instruction: str) -> list[int]:
        """Token ids of one instruction and the line break after it; what is too long is cut off, as published.

        Raises:
            UserError: it is empty.
        """
        if instruction not in self._ids:
            if not instruction.strip():
                raise UserError(f"the instruction is {instruction!r}; expected what to do in words")
            ids = self.tokenizer.encode(instruction if instruction.endswith("\n") else f"{instruction}\n").ids
            if len(ids) > self.max_tokens:
                warnings.warn(
                    f"instruction {brief(instruction)} has {len(ids)} tokens; this policy reads the first {self.max_tokens}",
                    stacklevel=2,
                )
            self._ids[instruction] = ids[: self.max_tokens]
        return self._ids[instruction]

    def batch(self, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(ids int64 [B, L], valid bool [B, L]) of B instructions, padded on the right to the longest."""
        rows = [self.ids(instruction) for instruction in instructions]
        length = max(len(row) for row in rows)
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        valid = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows])
        return ids, valid

    def special(self, tokens: Sequence[str]) -> list[int]:
        """Ids of special tokens.

        Raises:
            UserError: the tokenizer has no such token.
        """
        ids = []
        for token in tokens:
            number = self.tokenizer.token_to_id(token)
            if number is None:
                raise UserError(f"the tokenizer lacks {token!r}, which stands at pictures; expected SmolVLM2's")
            ids.append(number)
        return ids
