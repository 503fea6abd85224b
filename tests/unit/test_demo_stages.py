"""The stages of the demo: each once, with the time of interrupted attempts."""

from pathlib import Path

import pytest

from simplevla.evaluation.result import EvaluationResult, Outcome, write_result
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


def test_the_summary_has_each_success_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def evidence(run: Path) -> None:
        (run / "eval").mkdir(parents=True)
        for name, solved in (("before", 1), ("after", 3)):
            outcomes = [Outcome(task="lift", initial_state=i, success=i < solved, env_steps=5) for i in range(4)]
            result = EvaluationResult(
                suite="tabletop",
                split="test",
                protocol={},
                horizons={"lift": 18},
                greedy=True,
                temperature=None,
                seed=3,
                episodes=tuple(outcomes),
                wall_s=1.0,
                versions={},
                commit="unknown",
            )
            write_result(run / "eval" / f"{name}.json", result)
        (run / "metrics.jsonl").write_text('{"update": 1, "episodes_total": 40}\n{"update": 2, "episodes_total": 96}\n')

    for stage in ("generate", "sft", "train", "write_report"):
        monkeypatch.setattr(demo, stage, lambda *_, **__: None)
    monkeypatch.setattr(demo, "gather_evidence", evidence)
    summary = demo.demo(tmp_path / "demo", seed=3)
    expected = {"sft_success": 0.25, "rl_success": 0.75, "n": 4, "episodes": 96, "updates": 2, "seed": 3}
    assert {key: summary[key] for key in expected} == expected
