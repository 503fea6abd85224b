"""Instructions as vectors, without a model: hashed words, pairs of neighbouring words and letter trigrams."""

import itertools
import re
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

DIMENSIONS = 1024


def embed(instruction: str) -> np.ndarray:
    """float32 [1024] of length 1 (0 if there is no word): the cosine of two says how alike two instructions are.

    Each word, each pair of neighbours and the letter trigrams of a word together have length 1, so that "pushing" is
    near "push" and "red on blue" isn't "blue on red". A feature's place and sign are its CRC-32 (feature hashing).
    """
    words = re.findall(r"[\w']+", instruction.lower())
    vector = np.zeros(DIMENSIONS)
    for word in words:
        _count(vector, [word], 1.0)
        padded = f"<{word}>"
        trigrams = [padded[i : i + 3] for i in range(len(padded) - 2)]
        _count(vector, [f"#{trigram}" for trigram in trigrams], len(trigrams) ** -0.5)
    _count(vector, [f"{first} {second}" for first, second in itertools.pairwise(words)], 1.0)
    return _unit(vector)


def prototype(instructions: Sequence[str]) -> np.ndarray:
    """float32 [1024] of length 1: the direction of the mean of the instructions' embeddings."""
    return _unit(np.mean([embed(instruction) for instruction in instructions], axis=0))


def _count(vector: np.ndarray, features: Iterable[str], weight: float) -> None:
    for feature in features:
        code = zlib.crc32(feature.encode())
        vector[code % DIMENSIONS] += weight if code & 0x80000000 else -weight


def _unit(vector: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vector)
    return (vector / length if length else vector).astype(np.float32)
