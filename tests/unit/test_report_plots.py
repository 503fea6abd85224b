from pathlib import Path

import pytest
from matplotlib.figure import Figure

from simplevla.report.plots import IMITATION_PANELS, PANELS, imitation_curves, learning_curves, steps_plot

ROWS = [
    {"update": 0, "eval_success": 0.25, "eval_low": 0.2, "eval_high": 0.3},
    {
        "update": 1,
        "train_success": 0.4,
        "groups_sampled": 40,
        "groups_mixed": 20,
        "groups_all_failed": 16,
        "groups_all_solved": 2,
        "success_by_task": {"lift": [3, 4], "push": [0, 0]},
        "entropy": None,
        "episodes_total": 320,
        "collect_s": 7.0,
        "update_s": 2.0,
    },
    {"update": 2, "train_success": 0.5, "entropy": 2.0, "episodes_total": 640, "collect_s": 6.0, "eval_s": 3.0},
]


def drawn(title, rows=ROWS):
    axes = Figure().subplots()
    next(panel for panel in PANELS if panel.title.startswith(title)).draw(axes, rows)
    return axes


def test_success_is_drawn_in_percent_where_it_was_logged():
    train, evaluation = drawn("Success").get_lines()
    assert train.get_xydata().tolist() == [[1, 40], [2, 50]]
    assert evaluation.get_xydata().tolist() == [[0, 25]]


def test_values_that_were_not_finite_leave_a_gap():
    (line,) = drawn("Entropy").get_lines()
    assert line.get_xydata().tolist() == [[2, 2.0]]


@pytest.mark.parametrize(("values", "limits"), [((2.0, 1.99), (0, 2.12)), ((-0.8, -1.0), (-1.06, 0.06))])
def test_a_flat_or_negative_line_lies_inside_of_its_axes(values, limits):
    rows = [{"update": update, "entropy": value} for update, value in enumerate(values, start=1)]
    assert drawn("Entropy", rows).get_ylim() == pytest.approx(limits)


def test_groups_are_shares_of_the_sampled_ones():
    # Mixed 20 of 40, all failed 16, all solved 2, stacked; two broke or lay outside of the filter.
    tops = [layer.get_paths()[0].vertices[:, 1].max() for layer in drawn("Groups").collections]
    assert tops == pytest.approx([50, 90, 95])


def test_tasks_without_episodes_are_left_out():
    lift, push = drawn("Training success per task").get_lines()
    assert lift.get_xydata().tolist() == [[1, 75]]
    assert len(push.get_xydata()) == 0


def test_stages_are_stacked():
    bars = [(bar.get_y(), bar.get_height()) for bar in drawn("Time").patches]
    rollout, update, evaluation = bars[:3], bars[3:6], bars[6:]
    assert rollout == [(0, 0), (0, 7), (0, 6)]
    assert update == [(0, 0), (7, 2), (6, 0)]
    assert evaluation == [(0, 0), (9, 0), (6, 3)]


def test_panels_without_data_are_named():
    curves, missing = learning_curves(ROWS)
    assert [panel.title for panel, _ in curves] == [
        "Success, %",
        "Groups sampled, %",
        "Training success per task, %",
        "Entropy, nats",
        "Time per stage, s",
    ]
    assert "Gradient norm" in missing
    assert len(curves) + len(missing) == len(PANELS)


def test_the_same_data_gives_the_same_picture():
    assert steps_plot([(30, 20), (40, 50)], "before", "after") == steps_plot([(30, 20), (40, 50)], "before", "after")
    assert steps_plot([(30, 20), (40, 50)], "before", "after") != steps_plot([(30, 20), (40, 40)], "before", "after")


def test_imitation_is_drawn_against_batches():
    rows = [
        {"batch": 25, "loss": 3.0, "lr": 1e-3},
        {"batch": 50, "loss": 2.0},
        {"batch": 50, "validation_loss": 2.5},
    ]
    ((panel, svg),) = imitation_curves(rows)
    assert panel.title == "Imitation loss"
    assert "<!-- batch -->" in svg
    assert "<!-- update -->" not in svg
    (_, success) = imitation_curves([*rows, {"batch": 50, "success": 0.3}])
    assert success[0].title == "Success while it imitated, %"
    axes = Figure().subplots()
    panel.draw(axes, [{**row, "update": row["batch"]} for row in rows])
    training, validation = axes.get_lines()
    assert training.get_xydata().tolist() == [[25, 3.0], [50, 2.0]]
    assert validation.get_xydata().tolist() == [[50, 2.5]]


def test_every_plotted_metric_is_defined_in_the_documentation():
    documented = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    undefined = [key for panel in (*PANELS, *IMITATION_PANELS) for key in panel.keys if f"`{key}`" not in documented]
    assert undefined == []
