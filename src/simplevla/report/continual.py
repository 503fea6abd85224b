"""A continual experiment as tables, from the content of its `continual.json`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from simplevla.adapters.metrics import FORMULAS, ContinualResult, SuccessMatrix
from simplevla.checked import from_dict
from simplevla.evaluation.result import Rate, read_result
from simplevla.report.origin import origin_of
from simplevla.report.plots import imitation_curves, steps_plot
from simplevla.report.rendering import render
from simplevla.report.steps import Steps, steps_to_success
from simplevla.storage import read_json, write_atomically


def write_continual_report(run: Path) -> Path:
    """Writes RUN/continual.html, one self-contained page, from RUN/continual.json, and returns its path.

    Raises:
        UserError: the run isn't finished, or its result is damaged.
    """
    result = read_json(run / "continual.json")
    from_dict(ContinualResult, result, source=str(run / "continual.json"))
    matrix = SuccessMatrix.from_dict(result)
    columns = _columns(matrix)
    rows = [
        {
            "stage": stage,
            "cells": [
                {"rate": _rate(matrix, i, task), "trained": i > 0 and task == matrix.order[i - 1]} for task in columns
            ],
        }
        for i, stage in enumerate(_stages(matrix, {task: task for task in columns}))
    ]
    values = {**result, **(result["libero"] or {})}
    config = read_json(run / "config.json") if (run / "config.json").exists() else {}
    origin = origin_of(run, config.get("train"), _first_environment(run, matrix))
    steps, steps_by_task = _steps(run, matrix)
    text = render(
        "continual.html.jinja",
        origin=origin,
        subject="tasks one after another",
        result=result,
        tasks=columns,
        rows=rows,
        metrics=[{"name": name, "points": _points(values.get(name)), "formula": FORMULAS[name]} for name in FORMULAS],
        steps=steps,
        steps_by_task=steps_by_task,
        steps_plot=steps_plot(steps.pairs, "with the base", "after the last task") if steps else "",
        curves=imitation_curves(origin.imitation),
    )
    page = run / "continual.html"
    write_atomically(page, text)
    return page


def _first_environment(run: Path, matrix: SuccessMatrix) -> dict[str, Any] | None:
    """The environment.json of the first task's first stage; None if the folder holds the result alone."""
    folder = run / f"1_{matrix.order[0]}"
    found = [folder / stage / "environment.json" for stage in ("warmup", "rl")]
    facts = next((read_json(file) for file in found if file.exists()), None)
    # A stage starts from a policy of its own.
    return facts and {"date": facts.get("date")}


def _steps(run: Path, matrix: SuccessMatrix) -> tuple[Steps | None, dict[str, Steps]]:
    """Env steps to success of the base and after the last task, as `steps_to_success` gives them."""
    rows = [run / "row_0.json", run / f"{len(matrix.order)}_{matrix.order[-1]}" / "row.json"]
    if not all(file.exists() for file in rows):
        return None, {}
    return steps_to_success(*map(read_result, rows))


def matrix_table(result: Mapping[str, Any], intervals: Sequence[Sequence[tuple[float, float]]] | None = None) -> str:
    """The success matrix in markdown: a row per stage, a column per task, an interval in each cell.

    Trained tasks come first, in the order of training; the task that a row has just trained is bold. Tasks have their
    short names. n is in the head, and in the cells where they differ.

    Args:
        intervals: (low, high) of each cell, rows and columns as in `result`; without them 95 % Wilson intervals.

    Raises:
        UserError: `result` isn't what continual.json holds.
    """
    matrix = SuccessMatrix.from_dict(result)
    columns = _columns(matrix)
    short = dict(zip(columns, short_names(columns), strict=True))
    heads = [short[task] if task in matrix.order else f"{short[task]} (not trained)" for task in columns]
    same = {n for row in matrix.n for n in row}
    corner = f"success, % of {min(same)}" if len(same) == 1 else "success, %"
    lines = [f"| {corner} | {' | '.join(heads)} |", "|---" * (len(columns) + 1) + "|"]
    for i, stage in enumerate(_stages(matrix, short)):
        cells = []
        for task in columns:
            rate = _rate(matrix, i, task)
            text = f"{100 * rate.rate:.0f}"
            text = f"**{text}**" if i > 0 and task == matrix.order[i - 1] else text
            n = "" if len(same) == 1 else f" n={rate.n}"
            low, high = intervals[i][matrix.tasks.index(task)] if intervals else (rate.low, rate.high)
            cells.append(f"{text} [{100 * low:.0f}, {100 * high:.0f}]{n}")
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw_matrix(axes: Axes, matrix: SuccessMatrix) -> None:
    """Draws the heat map into `axes`; for figures that hold several."""
    columns = _columns(matrix)
    rates = [[100 * matrix.rate(i, task) for task in columns] for i in range(len(matrix.n))]
    axes.imshow(rates, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for i, row in enumerate(rates):
        for j, rate in enumerate(row):
            n = _rate(matrix, i, columns[j]).n
            axes.text(
                j,
                i,
                f"{rate:.0f}\nn={n}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if rate < 55 else "black",
            )
    for k, task in enumerate(matrix.order, start=1):
        place = (columns.index(task) - 0.5, k - 0.5)
        axes.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor="#d9622b", linewidth=2))
    short = dict(zip(columns, short_names(columns), strict=True))
    axes.set_xticks(range(len(columns)), list(short.values()), rotation=30, ha="right")
    axes.set_yticks(range(len(matrix.n)), _stages(matrix, short))
    axes.grid(visible=False)


def short_names(tasks: Sequence[str]) -> list[str]:
    """Names without the words that all begin or end with, as far as each keeps one.

    >>> short_names(["pick_up_the_milk_and_go", "pick_up_the_tomato_sauce_and_go"])
    ['milk', 'tomato_sauce']
    """
    words = [task.split("_") for task in tasks]
    for _ in range(2):
        while len(words) > 1 and min(map(len, words)) > 1 and len({row[0] for row in words}) == 1:
            words = [row[1:] for row in words]
        words = [row[::-1] for row in words]
    return ["_".join(row) for row in words]


def _columns(matrix: SuccessMatrix) -> list[str]:
    return [*matrix.order, *(task for task in matrix.tasks if task not in matrix.order)]


def _stages(matrix: SuccessMatrix, names: Mapping[str, str]) -> list[str]:
    return ["base", *(f"after {k}: {names[task]}" for k, task in enumerate(matrix.order, start=1))]


def _rate(matrix: SuccessMatrix, i: int, task: str) -> Rate:
    j = matrix.tasks.index(task)
    return Rate(solved=matrix.solved[i][j], n=matrix.n[i][j])


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
