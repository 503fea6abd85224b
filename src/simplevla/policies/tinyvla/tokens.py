"""Instructions to token ids: a byte-level BPE learned from the instructions themselves, so nothing is downloaded."""

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from simplevla.errors import UserError

PADDING_ID = 0


def train_tokenizer(instructions: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer that gives a word of `instructions` about one token and spells anything else in bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(instructions)), trainer)
    return tokenizer


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
