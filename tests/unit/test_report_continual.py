from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from simplevla.adapters.metrics import SuccessMatrix
from simplevla.evaluation.result import EvaluationResult, Outcome, write_result
from simplevla.report.continual import (
    draw_matrix,
    matrix_table,
    write_continual_report,
)
from simplevla.storage import write_json

MATRIX = SuccessMatrix(
    tasks=("lift", "push", "press"),
    order=("push", "lift"),
    solved=((1, 2, 3), (3, 8, 3), (9, 6, 0)),
    n=((10, 10, 10), (10, 10, 10), (10, 10, 30)),
)
RESULT = MATRIX.to_dict("per_task", 3)


def test_the_table_has_intervals_n_and_the_order_of_training() -> None:
    lines = matrix_table(RESULT).splitlines()
    assert lines[0] == "| success, % | push | lift | press (not trained) |"
    assert lines[1] == "|---|---|---|---|"
    # Wilson at 2 of 10: 5.7 to 51.0; at 1 of 10: 1.8 to 40.4; at 3 of 10: 10.8 to 60.3
    assert lines[2] == "| base | 20 [6, 51] n=10 | 10 [2, 40] n=10 | 30 [11, 60] n=10 |"
    assert lines[3].startswith("| after 1: push | **80** [49, 94] n=10 | 30 [")
    assert lines[4].startswith("| after 2: lift | 60 [31, 83] n=10 | **90** [60, 98] n=10 | 0 [0, 11] n=30 |")
    assert len(lines) == 5


def test_the_table_says_an_equal_n_once_and_names_tasks_briefly() -> None:
    matrix = SuccessMatrix(
        tasks=("take_the_milk_up", "take_the_butter_up"),
        order=("take_the_milk_up",),
        solved=((1, 2), (9, 2)),
        n=((10, 10), (10, 10)),
    )
    lines = matrix_table(matrix.to_dict("shared", 0)).splitlines()
    assert lines[0] == "| success, % of 10 | milk | butter (not trained) |"
    assert lines[3] == "| after 1: milk | **90** [60, 98] | 20 [6, 51] |"


def test_the_table_has_the_intervals_that_it_is_given() -> None:
    # columns as in the matrix: lift, push, press
    given = [[(0.1 * i, 0.2), (0.3 * i, 0.4), (0.5 * i, 0.6)] for i in range(3)]
    lines = matrix_table(RESULT, given).splitlines()
    assert lines[2] == "| base | 20 [0, 40] n=10 | 10 [0, 20] n=10 | 30 [0, 60] n=10 |"
    assert lines[3].startswith("| after 1: push | **80** [30, 40] n=10 | 30 [10, 20] n=10 | 30 [50, 60] n=10 |")


def test_the_heat_map_shows_every_cell_and_frames_the_trained_ones() -> None:
    axes = Figure().subplots()
    draw_matrix(axes, MATRIX)
    # columns push, lift, press
    assert axes.images[0].get_array().tolist() == [[20, 10, 30], [80, 30, 30], [60, 90, 0]]
    texts = {tuple(text.get_position()): text.get_text() for text in axes.texts}
    assert texts[(2, 2)] == "0\nn=30"
    assert len(texts) == 9
    frames = [patch.get_xy() for patch in axes.patches if isinstance(patch, Rectangle)]
    assert frames == [(-0.5, 0.5), (0.5, 1.5)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["base", "after 1: push", "after 2: lift"]


def test_the_page_has_the_matrix_the_recipe_and_the_steps_of_base_and_last_row(tmp_path: Path) -> None:
    rest = {"libero": None, "start_from": "base", "episodes": 128, "protocol": {}, "commit": "0123abcd", "doubts": []}
    write_json(tmp_path / "continual.json", RESULT | rest | {"stages": []})
    page = write_continual_report(tmp_path).read_text()
    # push after its own training: 8 of 10, framed; 0.6 of full colour at 100 %.
    assert '<td class="trained" style="background: rgb(43 143 214 / 0.48)">80 %' in page
    assert page.count('class="trained"') == 2
    assert "Env steps to success" not in page
    write_json(tmp_path / "config.json", {"train": {"title": "tabletop_continual"}})
    write_json(tmp_path / "1_push" / "rl" / "environment.json", {"date": "2026-03-04", "start_policy_sha256": "a"})
    for file, env_steps in (("row_0.json", 50), ("2_lift/row.json", 40)):
        write_result(tmp_path / file, solved_in(env_steps))
    page = write_continual_report(tmp_path).read_text()
    assert (
        f"<title>tabletop_continual: tasks one after another (4 March 2026, run {tmp_path.parent.name}/{tmp_path.name})</title>"
        in page
    )
    assert "a mean of <b>50.0</b> env steps with the base and <b>40.0</b> after the last task" in page
    assert "No curve: the run&#39;s config names no policy that it started from." in page


def solved_in(env_steps: int) -> EvaluationResult:
    return EvaluationResult(
        suite="toy",
        split="test",
        protocol={},
        horizons={"push": 100},
        greedy=True,
        temperature=None,
        seed=0,
        episodes=(Outcome(task="push", initial_state=0, success=True, env_steps=env_steps),),
        wall_s=1.0,
        versions={},
        commit="",
    )


def test_the_page_says_in_which_task_metrics_left_their_range(tmp_path: Path) -> None:
    stage = {
        "task": "push",
        "outcome": "finished",
        "message": "",
        "updates": 2,
        "episodes": 64,
        "minutes": 1.0,
        "curve": [],
        "trained_parameters": 10,
        "adapter_bytes": None,
    }
    stages = [
        stage | {"warnings": ["update 1: approx_kl is 0.3; expected at most 0.02."]},
        stage | {"task": "lift", "warnings": []},
    ]
    rest = {"libero": None, "start_from": "base", "episodes": 128, "protocol": {}, "commit": "0123abcd"}
    for stages_of_run, shown in ((stages, 1), ([stage], 0)):
        write_json(tmp_path / "continual.json", RESULT | rest | {"stages": stages_of_run})
        page = write_continual_report(tmp_path).read_text()
        sentence = "Metrics of <b>push</b> left the range of healthy runs, first at update 1: approx_kl is 0.3;"
        assert page.count(sentence) == page.count("left the range") == shown


def test_the_page_calls_states_held_out_only_where_they_are(tmp_path: Path) -> None:
    rest = {"libero": None, "start_from": "base", "episodes": 1, "protocol": {}, "commit": "0123abcd", "stages": []}

    def page(**doubts: list[str]) -> str:
        write_json(tmp_path / "continual.json", RESULT | rest | doubts)
        return write_continual_report(tmp_path).read_text()

    assert "Success on test initial states (held out)</h2>" in page(doubts=[])
    assert "About these rates" not in page(doubts=[])
    doubted = page(doubts=["held out: no: 3 met", "not as trained: another size"])
    assert "About these rates: held out: no: 3 met<" in doubted
    assert "About these rates: not as trained: another size<" in doubted
    # A file from before this was recorded.
    old = page()
    assert "About these rates: held out: unknown: not recorded<" in old
    assert "(held out)" not in doubted + old
