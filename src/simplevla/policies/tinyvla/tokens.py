"""Instructions to token ids."""

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from simplevla.errors import UserError

PADDING_ID = 0


class InstructionTokens:
    """Tokenizes instructions, each distinct one once, with the prompt around them if there is one."""

    before: list[int]
    """Tokens that stand before the views' tokens; `batch` leaves them out."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, prompt: str = "") -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        start, _, self._rest = prompt.rpartition("<image>")
        self.before = tokenizer.encode(start).ids if start else []
        self._ids: dict[str, list[int]] = {}

    def ids(self, instruction: str) -> list[int]:
        """Token ids of one instruction, with what the prompt has after the views.

        Raises:
            UserError: if it is empty or longer than the policy's `max_instruction_tokens`.
        """
        if instruction not in self._ids:
            text = self._rest.replace("{instruction}", instruction.strip()) if self._rest else instruction
            ids = self.tokenizer.encode(text).ids
            if not 1 <= len(ids) <= self.max_tokens:
                raise UserError(
                    f"instruction {instruction!r} has {len(ids)} tokens; this policy takes 1 to {self.max_tokens} "
                    "(words that its demonstrations don't know count one token per letter or so)"
                )
            self._ids[instruction] = ids
        return self._ids[instruction]

    def batch(self, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(ids int64 [D, L], valid bool [D, L]) of D instructions, padded on the right to the longest."""
        rows = [self.ids(instruction) for instruction in instructions]
        length = max(len(row) for row in rows)
        ids = torch.tensor([row + [PADDING_ID] * (length - len(row)) for row in rows])
        valid = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows])
        return ids, valid
