import pytest

from simplevla.adapters.metrics import SuccessMatrix

# Three tasks trained in the order B, A, C of the columns A, B, C, D; D is never trained. Of n = 10 each:
SOLVED = ((1, 2, 3, 4), (3, 8, 3, 5), (9, 6, 5, 5), (7, 7, 10, 2))
MATRIX = SuccessMatrix(tasks=("A", "B", "C", "D"), order=("B", "A", "C"), solved=SOLVED, n=((10,) * 4,) * 4)
CURVES = {"B": (0.2, 0.6, 0.8, 0.4), "A": (0.3, 0.9), "C": (0.5, 1.0, 0.8)}


def test_avg_is_the_last_row_over_trained_tasks() -> None:
    assert MATRIX.avg() == pytest.approx((0.7 + 0.7 + 1.0) / 3)


def test_nbt_is_what_the_earlier_tasks_lost() -> None:
    # B: 0.8 after its training, 0.7 at the end; A: 0.9 and 0.7; the last task can't be forgotten yet
    assert MATRIX.nbt() == pytest.approx((0.1 + 0.2) / 2)


def test_fwt_is_what_a_task_gains_before_its_training() -> None:
    # A just before its training 0.3, base 0.1; C 0.5 and 0.3; the first task has none before it
    assert MATRIX.fwt() == pytest.approx((0.2 + 0.2) / 2)


def test_zs_is_the_last_row_over_tasks_never_trained() -> None:
    assert MATRIX.zs() == pytest.approx(0.2)


def test_libero_s_own_definitions() -> None:
    found = MATRIX.libero(CURVES)
    # held at the best: B 0.2 0.6 0.8 0.8, A 0.3 0.9, C 0.5 1.0 1.0
    forward = {"B": 0.6, "A": 0.6, "C": 2.5 / 3}
    assert found["LIBERO FWT"] == pytest.approx(sum(forward.values()) / 3)
    # B: mean of 0.8 - 0.6 and 0.8 - 0.7; A: 0.9 - 0.7; C: nothing later, counted as 0
    assert found["LIBERO NBT"] == pytest.approx((0.15 + 0.2 + 0) / 3)
    # B: (0.6 + 0.6 + 0.7) / 3; A: (0.6 + 0.7) / 2; C: itself
    assert found["AUC"] == pytest.approx((1.9 / 3 + 0.65 + 2.5 / 3) / 3)


def test_what_isn_t_defined_is_none() -> None:
    base = SuccessMatrix(tasks=("A", "B"), order=(), solved=((1, 0),), n=((2, 2),))
    assert (base.avg(), base.nbt(), base.fwt(), base.zs()) == (None, None, None, 0.25)
    one = SuccessMatrix(tasks=("A",), order=("A",), solved=((1,), (2,)), n=((2,), (2,)))
    assert (one.avg(), one.nbt(), one.fwt(), one.zs()) == (1.0, None, None, None)
    assert one.libero({"A": (0.5, 1.0)}) == {"LIBERO FWT": 0.75, "LIBERO NBT": 0.0, "AUC": 0.75}
    # Held at the best from the first time on, though it fell once more.
    assert one.libero({"A": (0.5, 1.0, 0.5, 1.0)})["LIBERO FWT"] == 0.875
    with pytest.raises(ValueError, match=r"no learning curve of \['A'\]"):
        one.libero({})
    with pytest.raises(ValueError, match="any task"):
        base.libero({})


def test_the_plain_dict_and_back() -> None:
    result = MATRIX.to_dict("per_task", 3, CURVES)
    assert list(result) == ["tasks", "order", "structure", "seed", "matrix", "n", "AVG", "NBT", "FWT", "ZS", "AUC"]
    assert result["matrix"][2] == [0.9, 0.6, 0.5, 0.5]
    assert (result["structure"], result["seed"]) == ("per_task", 3)
    assert result["AUC"] == pytest.approx(MATRIX.libero(CURVES)["AUC"])
    assert SuccessMatrix.from_dict(result) == MATRIX
    assert MATRIX.to_dict("shared", 0)["AUC"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("A", "A")}, "each once"),
        ({"order": ("A", "E")}, "expected tasks of"),
        ({"order": ("A", "A")}, "each at most once"),
        ({"solved": ((1, 2),)}, r"rows of \[2\] and \[2, 2\] cells; expected 2 rows"),
        ({"n": ((2, 2), (2, 2, 2))}, "of 2"),
        ({"n": ((2, 2), (2, 0))}, "row 1, task 'B': 0 solved of n = 0"),
        ({"solved": ((1, 2), (3, 0))}, "row 1, task 'A': 3 solved of n = 2"),
    ],
)
def test_impossible_matrices_are_refused(change: dict, message: str) -> None:
    values = {"tasks": ("A", "B"), "order": ("B",), "solved": ((1, 2), (1, 0)), "n": ((2, 2), (2, 2))} | change
    with pytest.raises(ValueError, match=message):
        SuccessMatrix(**values)


def test_a_result_that_isn_t_one_is_refused() -> None:
    result = MATRIX.to_dict("per_task", 3)
    with pytest.raises(ValueError, match="WrittenMatrix lacks 'n'"):
        SuccessMatrix.from_dict({key: value for key, value in result.items() if key != "n"})
    result["matrix"][1][2] = 0.33
    with pytest.raises(ValueError, match=r"matrix\[1\]\[2\] is 0.33, which isn't a share of n = 10"):
        SuccessMatrix.from_dict(result)
