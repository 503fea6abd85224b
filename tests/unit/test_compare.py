import dataclasses
import io

import pytest
from rich.console import Console

from simplevla.evaluation.compare import compare, compare_files, comparison_table
from simplevla.evaluation.result import Broken, EvaluationResult, Outcome, write_result


def result(successes, broken=(), **changes):
    """`successes`: task -> string of 1 and 0, one per initial state; states in `broken` are left out."""
    values = {
        "suite": "two",
        "split": "test",
        "protocol": {"renderer": "egl"},
        "horizons": dict.fromkeys(successes, 30),
        "greedy": True,
        "temperature": None,
        "seed": 0,
        "episodes": tuple(
            Outcome(task=task, initial_state=state, success=flag == "1", env_steps=5)
            for task, flags in successes.items()
            for state, flag in enumerate(flags)
            if (task, state) not in broken
        ),
        "broken": tuple(Broken(*pair) for pair in broken),
        "wall_s": 1.0,
        "versions": {},
        "commit": "unknown",
    }
    return EvaluationResult(**{**values, **changes})


def test_discordant_pairs_and_p_by_hand():
    a = result({"lift": "1000000", "push": "11"})
    b = result({"lift": "0111110", "push": "11"})
    comparison = compare(a, b)
    lift, push, overall = comparison.by_task["lift"], comparison.by_task["push"], comparison.overall
    assert (lift.n, lift.a.solved, lift.b.solved, lift.only_a, lift.only_b) == (7, 1, 5, 1, 5)
    assert lift.p_value == pytest.approx(14 / 64, abs=1e-12)
    assert (push.n, push.a.rate, push.b.rate, push.p_value) == (2, 1.0, 1.0, 1.0)
    assert (overall.n, overall.a.solved, overall.b.solved, overall.only_a, overall.only_b) == (9, 3, 7, 1, 5)
    assert comparison.to_dict()["overall"]["mcnemar_exact_p"] == pytest.approx(14 / 64, abs=1e-12)


def test_states_broken_in_either_are_left_out_of_both():
    a = result({"lift": "1111"}, broken=[("lift", 0)])
    b = result({"lift": "0000"}, broken=[("lift", 3)])
    comparison = compare(a, b)
    assert comparison.unpaired == 2
    assert (comparison.overall.n, comparison.overall.only_a) == (2, 2)


def test_without_a_valid_pair_there_is_no_comparison():
    a = result({"lift": "11"}, broken=[("lift", 0)])
    b = result({"lift": "00"}, broken=[("lift", 1)])
    with pytest.raises(
        ValueError, match="no initial state has a valid episode in both: the environment broke 1 of 2 ep"
    ):
        compare(a, b)


def test_a_task_without_a_valid_pair_has_no_p():
    a = result({"lift": "1111", "push": "1"}, broken=[("push", 0)])
    b = result({"lift": "0000", "push": "0"})
    comparison = compare(a, b)
    assert comparison.to_dict()["by_task"]["push"]["mcnemar_exact_p"] is None
    assert comparison.to_dict()["by_task"]["lift"]["mcnemar_exact_p"] == 0.125
    screen = io.StringIO()
    Console(width=150, file=screen).print(comparison_table(comparison))
    (row,) = [line for line in screen.getvalue().splitlines() if "push" in line]
    assert [cell.strip() for cell in row.strip().strip("│").split("│")] == [
        "push",
        "0",
        "no pair",
        "no pair",
        "0",
        "0",
        "",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": "three"}, "suite differs: 'two' in A, 'three' in B"),
        ({"split": "train"}, "split differs: 'test' in A, 'train' in B"),
        ({"protocol": {"renderer": "osmesa"}}, "protocol 'renderer' differs: 'egl' in A, 'osmesa' in B"),
        ({"protocol": {"renderer": "egl", "visuals": "lite"}}, "protocol 'visuals' differs: 'not given' in A"),
        ({"horizons": {"lift": 31}}, "horizon of 'lift' differs: 30 in A, 31 in B"),
    ],
)
def test_what_differs_is_named(changes, message):
    a = result({"lift": "10"})
    with pytest.raises(ValueError, match=message):
        compare(a, dataclasses.replace(a, **changes))


def test_other_initial_states_are_refused():
    with pytest.raises(ValueError, match=r"0 only in A, 1 only in B \(lift/2\)"):
        compare(result({"lift": "10"}), result({"lift": "101"}))


def test_files_are_compared_by_name(tmp_path):
    write_result(tmp_path / "before.json", result({"lift": "00000"}))
    write_result(tmp_path / "after.json", result({"lift": "11111"}))
    comparison = compare_files(tmp_path / "before.json", tmp_path / "after.json")
    assert comparison.name_b.endswith("after.json")
    assert comparison.overall.p_value == 0.0625


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*nowhere\.json"):
        compare_files(tmp_path / "nowhere.json", tmp_path / "nowhere.json")


def shown(comparison):
    console = Console(file=io.StringIO(), width=200)
    console.print(comparison_table(comparison))
    return console.file.getvalue()


def test_what_differs_beside_the_policy_is_said():
    a = result({"lift": "10"}, held_out="yes", policy_sha256="a")
    assert compare(a, dataclasses.replace(a, policy_sha256="b")).notes == ()
    b = dataclasses.replace(
        a, policy_sha256="b", greedy=False, temperature=1.6, seed=3, held_out="no: 2 met", differences=("another size",)
    )
    comparison = compare(a, b)
    assert comparison.notes == (
        "A is greedy, B sampled at temperature 1.6",
        "A has seed 0, B 3",
        "B held out: no: 2 met",
        "B not as trained: another size",
    )
    assert comparison.to_dict()["notes"] == list(comparison.notes)
    assert all(note in shown(comparison) for note in comparison.notes)


def test_a_policy_compared_with_itself_is_said():
    a = result({"lift": "10"}, held_out="yes", policy_sha256="a")
    assert compare(a, a).notes == ("A and B are evaluations of the same policy",)
    # Nobody knows of files without a fingerprint.
    unnamed = dataclasses.replace(a, policy_sha256=None)
    assert compare(unnamed, unnamed).notes == ()
