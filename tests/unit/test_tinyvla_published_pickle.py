import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import made_tinyvla_checkpoint as made
from simplevla.policies.tinyvla.published_pickle import read_pickle

RAN: list[str] = []


def run(word: str) -> None:
    RAN.append(word)


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return run, ("ran",)


class Dtype:
    """Pickles as a numpy dtype of Python objects."""

    def __reduce__(self) -> tuple[Any, ...]:
        return np.dtype, ("O", False, True), (3, "|", None, None, None, -1, -1, 63)


def write(folder: Path, content: bytes) -> Path:
    file = folder / "dataset_stats.pkl"
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_arrays_and_numbers_come_through(tmp_path: Path, protocol: int) -> None:
    values = {
        **made.statistics(),
        "wide": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big_endian": np.array([1, 2], ">i4"),
        "flags": np.array([True, False]),
        "one": np.float32(0.5),
        "plain": [1, 2.5, "text", None, (True, {"k": 3})],
    }
    got = read_pickle(write(tmp_path, pickle.dumps(values, protocol)))
    assert got.keys() == values.keys()
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(got[name], value)
            assert got[name].dtype == value.dtype
    assert (got["one"], got["plain"]) == (0.5, [1, 2.5, "text", None, (True, {"k": 3})])


def test_numpy_1_calls_its_functions_by_another_module(tmp_path: Path) -> None:
    content = pickle.dumps({"a": np.float32([1, 2])}, 3)
    assert b"numpy._core" in content
    got = read_pickle(write(tmp_path, content.replace(b"numpy._core", b"numpy.core")))
    assert got["a"].tolist() == [1, 2]


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps({**made.statistics(), "extra": Runs()}, protocol)
    RAN.clear()
    pickle.loads(content)
    assert RAN == ["ran"], "the pickle does run code"
    RAN.clear()
    with pytest.raises(ValueError, match=r"could run code.*Nothing in it was run"):
        read_pickle(write(tmp_path, content))
    assert RAN == []


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'echo'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\nfromfile\n(S'x'\ntR.",
        b"(S'echo'\nios\nsystem\n.",
    ],
)
def test_any_other_name_is_refused(tmp_path: Path, content: bytes) -> None:
    pickletools.dis(content, out=open(tmp_path / "listing", "w"))  # noqa: SIM115  # it is a valid pickle
    with pytest.raises(ValueError, match="could run code"):
        read_pickle(write(tmp_path, content))


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    for value in (np.array([1, "a"], dtype=object), Dtype(), np.array([(1, 2.0)], dtype="i4,f8"), np.array(["text"])):
        with pytest.raises(ValueError, match="arrays and numbers only"):
            read_pickle(write(tmp_path, pickle.dumps({"a": value}, 4)))


def test_arrays_that_claim_another_size_are_refused(tmp_path: Path) -> None:
    honest = pickle.dumps(np.zeros(3, np.float32), 4)
    # The shape (3,) is written as K\x03 \x85; 200 numbers would be read from 12 bytes.
    lying = honest.replace(b"K\x03\x85", b"K\xc8\x85")
    assert lying != honest
    with pytest.raises(ValueError, match="12 bytes"):
        read_pickle(write(tmp_path, lying))


def test_a_pickle_cant_change_the_functions_that_it_may_call(tmp_path: Path) -> None:
    # Sets an attribute of numpy.ndarray's stand-in.
    content = b"\x80\x03cnumpy\nndarray\n}X\x05\x00\x00\x00_makeNsb."
    with pytest.raises(ValueError, match="tries to change"):
        read_pickle(write(tmp_path, content))


@pytest.mark.parametrize("content", [b"", b"\x80\x04", pickle.dumps(made.statistics())[:-20], b"text"])
def test_a_damaged_pickle_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ValueError, match=r"dataset_stats\.pkl is damaged"):
        read_pickle(write(tmp_path, content))
