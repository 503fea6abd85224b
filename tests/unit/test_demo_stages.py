"""The stages of the demo: each once, with the time of interrupted attempts."""

from pathlib import Path

import pytest

from simplevla.recipes import demo
from simplevla.recipes.demo import Stages


def test_an_interrupted_stage_runs_again_and_its_time_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 60.0, 1000.0, 1030.0])
    monkeypatch.setattr(demo.time, "monotonic", lambda: next(clock))
    calls = []

    def interrupted() -> None:
        calls.append("interrupted")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stages(tmp_path / "stages.json").run("sft", "learning", interrupted)
    again = Stages(tmp_path / "stages.json")
    again.run("sft", "learning", lambda: calls.append("done"))
    assert again.minutes == {"sft": 1.5}
    # Done: neither called nor timed any more.
    Stages(tmp_path / "stages.json").run("sft", "learning", lambda: calls.append("too often"))
    assert calls == ["interrupted", "done"]
