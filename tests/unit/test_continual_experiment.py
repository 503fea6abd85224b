"""The page and the bookkeeping of the experiment on structures of continual training, with made rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_results_pages import faults
from test_wording import unclear

from benchmarks.experiments import continual
from benchmarks.experiments.continual import Arguments, main, page
from simplevla import recipes
from simplevla.errors import UserError
from simplevla.storage import read_json, write_json
from simplevla.suites.registry import make_suite

RECIPE = "tabletop_continual"
TASKS = ("lift", "push", "press")


def row(structure: str, seed: int, solved: list[list[int]], order: int = 0) -> dict[str, Any]:
    """A run of two of three tasks with ten states a cell: the base's row, one after each task."""
    rates = [[count / 10 for count in counts] for counts in solved]
    tasks = TASKS[:2] if order == 0 else TASKS[1::-1]
    first, second = map(TASKS.index, tasks)
    return {
        "tasks": list(TASKS),
        "order": list(tasks),
        "order_number": order,
        "structure": structure,
        "seed": seed,
        "matrix": rates,
        "n": [[10] * 3] * 3,
        "AVG": (rates[2][first] + rates[2][second]) / 2,
        "NBT": rates[1][first] - rates[2][first],
        "FWT": rates[1][second] - rates[0][second],
        "ZS": rates[2][2],
        "AUC": None,
        "episodes": 64,
        "stages": [{"trained_parameters": 10, "adapter_bytes": None if structure == "full" else 40}],
        "protocol": dict(make_suite(recipes.CONTINUAL[RECIPE]().train.suite).protocol),
        "commit": "0123456789abcdef",
        "machine": "2 cores",
    }


KEPT, LOST = [[2, 2, 2], [8, 3, 3], [8, 9, 4]], [[2, 2, 2], [8, 3, 3], [4, 9, 4]]


def written(rows: list[dict[str, Any]], seeds: int = 1, orders: int = 1) -> str:
    structures = tuple(dict.fromkeys(row["structure"] for row in rows))
    return page(Arguments(recipe=RECIPE, seeds=tuple(range(seeds)), orders=orders, structures=structures), rows)


def sentences(text: str) -> str:
    return " ".join(text.split("\n\n")[1:3])


def test_three_sentences_say_what_the_figures_say() -> None:
    rows = [row("shared", 0, LOST), row("per_task", 0, KEPT), row("merge_then_new", 0, KEPT), row("full", 0, LOST)]
    text = written(rows)
    assert faults(text) == []
    assert list(unclear(text)) == []
    assert sentences(text) == (
        "Forgetting (NBT, points lost on a task since its training) is 40.0 for `shared`, 0.0 for `per_task`, 0.0 for "
        "`merge_then_new` and 40.0 for `full`, in one run each. `per_task` and `merge_then_new` end with the highest mean "
        "success on trained tasks, 85.0 % (lowest: `shared` and `full`, 65.0 %); `per_task` can't forget by construction. "
        "Sequential LoRA hardly forgets on large pretrained models (arXiv 2603.11653); `shared`, the same here, loses "
        "40.0 points, likely since our policy is small and not pretrained."
    )
    assert "95 % Wilson intervals" in text
    assert "| after 2: push | 40 [17, 69] | **90** [60, 98] | 40 [17, 69] |" in text


def test_a_structure_that_keeps_all_agrees_with_the_paper() -> None:
    said = sentences(written([row("shared", 0, KEPT), row("full", 0, KEPT)]))
    assert "`shared` and `full` end with a mean success of 85.0 % on trained tasks. " in said
    assert "`shared`, the same here, agrees, at 0.0 points" in said
    assert "wasn't run" in sentences(written([row("full", 0, KEPT)]))


def test_intervals_are_over_seeds_where_there_are_several() -> None:
    rows = [row(name, seed, KEPT if seed else LOST) for seed in (0, 1) for name in ("shared", "full")]
    text = written(rows, seeds=2)
    assert faults(text) == []
    assert list(unclear(text)) == []
    # 4 and 8 of 10: pooled, Wilson's interval of 12 of 20 is 39 to 78.
    assert "| after 2: push | 60 [25, 90] | **90** [" in text
    assert "| shared | 75.0 [65.0, 85.0] | 20.0 [0.0, 40.0] |" in text
    assert "Wilson" not in text
    assert "their intervals overlap" not in text
    rows[0] = rows[0] | {"AVG": 0.80}
    assert "; their intervals overlap)" in written(rows, seeds=2)


def test_a_matrix_is_of_one_order() -> None:
    other = row("shared", 0, [[2, 2, 2], [3, 8, 3], [9, 8, 4]], order=1)
    text = written([row("shared", 0, KEPT), other], orders=2)
    assert "### shared, order 2\n\n| success, % of 10 | push | lift | press (not trained) |" in text
    assert "over 2 runs each" in text


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Arguments:
    """One row, its base policy beside it; a run that is made copies the row instead of training."""
    base = tmp_path / "base0"
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"weights")
    arguments = Arguments(
        recipe=RECIPE,
        base=str(tmp_path / "base{seed}"),
        runs=tmp_path / "runs",
        out=tmp_path / "out",
        seeds=(0,),
        orders=1,
        structures=("shared",),
    )

    def made(config: Any, run: Path, resume: bool) -> dict[str, Any]:
        assert not resume
        stages = [{"trained_parameters": 10, "adapter_bytes": 40, "message": str(run)}]
        return row(config.structure, config.train.seed, KEPT) | {"order": list(config.tasks), "stages": stages}

    monkeypatch.setattr(continual, "continual", made)
    monkeypatch.setattr(continual, "page", lambda *_: "")
    monkeypatch.setattr(continual, "plot", lambda *_: None)
    main(arguments)
    (only,) = read_json(tmp_path / "out" / f"{RECIPE}.json")["runs"]
    assert (only["settings"]["updates"], len(only["settings"]["base_sha256"])) == (8, 64)
    return arguments


def test_rows_of_the_same_settings_stand_side_by_side(recorded: Arguments) -> None:
    main(replace(recorded, structures=("shared", "full")))
    rows = read_json(recorded.out / f"{RECIPE}.json")["runs"]
    assert [(made["structure"], made["settings"]["lr"]) for made in rows] == [("shared", 1e-3), ("full", 1.5e-4)]


def test_rows_of_another_base_are_refused(recorded: Arguments, tmp_path: Path) -> None:
    (tmp_path / "base0" / "model.safetensors").write_bytes(b"others")
    for structures in (("shared",), ("shared", "full")):
        with pytest.raises(UserError, match=r"row of shared, order 1, seed 0 was made with base_sha256 \w{64} \(now"):
            main(replace(recorded, structures=structures))


def test_rows_of_other_settings_are_refused(recorded: Arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    config = recipes.CONTINUAL[RECIPE]()
    shorter = replace(config, train=replace(config.train, updates=3))
    monkeypatch.setitem(recipes.CONTINUAL, RECIPE, lambda: shorter)
    with pytest.raises(UserError, match=r"was made with updates 8 \(now 3\); expected the same"):
        main(recorded)


def test_rows_of_another_protocol_are_no_company_for_new_ones(recorded: Arguments) -> None:
    file = recorded.out / f"{RECIPE}.json"
    (only,) = read_json(file)["runs"]
    write_json(file, {"runs": [only | {"protocol": only["protocol"] | {"image_size": 32}}]})
    main(recorded)
    with pytest.raises(UserError, match=r"image_size 32 \(now 64\)"):
        main(replace(recorded, structures=("shared", "full")))


def test_rows_without_settings_are_for_pages_alone(recorded: Arguments) -> None:
    file = recorded.out / f"{RECIPE}.json"
    (only,) = read_json(file)["runs"]
    del only["settings"]
    write_json(file, {"runs": [only]})
    main(recorded)
    with pytest.raises(UserError, match="doesn't say its settings and base policy"):
        main(replace(recorded, structures=("shared", "full")))


@pytest.mark.parametrize("recipe", list(recipes.CONTINUAL))
def test_quick_leaves_recorded_results_and_real_runs_alone(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONTINUAL", "DEMOS", "SFT"):
        monkeypatch.setattr(recipes, name, dict(getattr(recipes, name)))
    quick = continual.quickened(Arguments(recipe=recipe, quick=True))
    assert (quick.out, quick.runs) == (continual.QUICK, continual.QUICK)
    assert (quick.orders, quick.seeds) == (1, (0,))
    config = recipes.CONTINUAL[recipe]()
    assert (config.train.updates, len(config.tasks), len(config.train.suite.tasks)) == (1, 2, 3)
