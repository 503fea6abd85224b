"""The record of what broke."""

from simplevla.rollout.crew import Errors, last_lines

TRACEBACK = """Traceback (most recent call last):
  File "workers.py", line 1, in execute
    environment.step_chunk(actions)
    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "robot.py", line 7, in step_chunk
    raise RuntimeError("the gripper fell off")

RuntimeError: the gripper fell off
"""


def test_errors_are_counted_by_kind_and_the_last_one_is_known() -> None:
    errors = Errors()
    assert (errors.last_error, errors.metrics(), str(errors)) == ("", {}, "")
    errors.add("raised", "first")
    errors.add("died", "died")
    errors.add("raised", TRACEBACK)
    assert errors.counts == {"raised": 2, "died": 1}
    assert errors.last_error == TRACEBACK
    assert str(errors) == "raised (2 times, last: RuntimeError: the gripper fell off); died (1 time)"
    assert errors.metrics() == {
        "errors": {"raised": 2, "died": 1},
        "last_error": "    environment.step_chunk(actions)\n"
        '  File "robot.py", line 7, in step_chunk\n'
        '    raise RuntimeError("the gripper fell off")\n'
        "RuntimeError: the gripper fell off",
    }


def test_merging_adds_counts_and_keeps_the_order_of_the_last_errors() -> None:
    mine, other = Errors(), Errors()
    mine.add("raised", "mine", 3)
    other.add("silent", "silent")
    other.add("raised", "other's", 2)
    other.add("died", "died")
    mine.merge(other)
    assert mine.counts == {"raised": 5, "silent": 1, "died": 1}
    assert mine.last == {"raised": "other's", "silent": "silent", "died": "died"}
    assert mine.last_error == "died"
    assert other.counts == {"silent": 1, "raised": 2, "died": 1}


def test_a_copy_stays_as_it_was() -> None:
    errors = Errors()
    errors.add("raised", "one")
    copied = errors.copy()
    errors.add("raised", "two")
    errors.add("died", "died")
    assert (copied.counts, copied.last) == ({"raised": 1}, {"raised": "one"})


def test_long_lines_and_empty_ones_are_cut() -> None:
    assert last_lines("a\n\n   ^^^^\n" + "x" * 1000, 2) == "a\n" + "x" * 300
