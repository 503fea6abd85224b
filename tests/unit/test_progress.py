import io

import pytest
import rich.console

from simplevla import progress
from simplevla.progress import Progress, duration, tracked
from simplevla.terminal import Console


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def console(terminal: bool = False, quiet: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None, quiet=quiet)


def shown(on: Console) -> list[str]:
    return on.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


def test_a_log_gets_a_line_every_now_and_then_and_one_at_the_end() -> None:
    on, clock = console(), Clock()
    with Progress("sft", 1500, done=500, console=on, clock=clock) as bar:
        for done in range(510, 1010, 10):
            clock.now += 1
            bar.update(done, f"loss {done / 1000:.2f}")
        bar.update(1500)
    assert shown(on) == [
        "sft: 650 of 1,500, 10.0/s, 1:25 left, loss 0.65",
        "sft: 800 of 1,500, 10.0/s, 1:10 left, loss 0.80",
        "sft: 950 of 1,500, 10.0/s, 0:55 left, loss 0.95",
        "sft: 1,500 of 1,500, 20.0/s, took 0:50, loss 1.00",
    ]


def test_what_is_slow_is_told_per_minute_and_hours_as_hours() -> None:
    on, clock = console(), Clock()
    with Progress("films", 10, console=on, clock=clock) as bar:
        clock.now += 1200
        bar.update(1)
    assert shown(on)[0] == "films: 1 of 10, 0.1/min, 3:00:00 left"
    assert (duration(59.6), duration(0)) == ("1:00", "0:00")


def test_a_job_that_fails_says_how_far_it_came() -> None:
    on = console()

    def fail() -> None:
        with tracked([1, 2, 3], "looking at files", on) as items:
            for item in items:
                if item == 3:
                    raise RuntimeError("the third")

    with pytest.raises(RuntimeError, match="the third"):
        fail()
    assert len(shown(on)) == 1
    assert shown(on)[0].startswith("looking at files: 2 of 3")


def test_a_terminal_has_the_bar_with_the_same_words_and_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[str] = []
    monkeypatch.setattr("simplevla.terminal.record", recorded.append)
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    on, clock = console(terminal=True), Clock()
    with Progress("sft", 4, console=on, clock=clock) as bar:
        clock.now += 2
        bar.update(1, "loss 0.50")
    text = on.file.getvalue()  # type: ignore[attr-defined]
    assert "1 of 4, 30.0/min, 0:06 left, loss 0.50" in text
    assert "━" in text
    assert "sft: " not in text
    # But the run's log has them.
    assert [line for line in recorded if line.strip()] == ["sft: 1 of 4, 30.0/min, 0:06 left, loss 0.50"] * 2


def test_a_quiet_one_says_nothing() -> None:
    on = console(quiet=True)
    with tracked(["a"], "reading", on) as items:
        assert list(items) == ["a"]
    assert shown(on) == []


def test_a_notebook_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    # As a kernel sets it.
    monkeypatch.setenv("FORCE_COLOR", "1")
    on = Console(file=io.StringIO(), width=120)
    with Progress("sft", 2, console=on) as bar:
        bar.update(2)
    assert not on.is_jupyter
    assert not on.is_terminal
    assert len(shown(on)) == 1
