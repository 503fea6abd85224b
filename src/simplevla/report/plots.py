"""Plots as SVG text, in colours that can be read on a light and on a dark page."""

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

Row = Mapping[str, Any]
"""One update's metrics, the keys of docs/metrics.md."""

BEFORE, AFTER = "#e69f00", "#2b8fd6"
COLOURS = (AFTER, BEFORE, "#12a37a", "#d9622b", "#b86fa5", "#8a9199")
"""Distinguishable with the common colour blindnesses (after Okabe and Ito), with contrast on white and on black."""
INK = "#808891"
FRAMED: dict[str, Any] = {"labelcolor": "#404850", "frameon": True, "facecolor": "white", "framealpha": 0.75}
"""A legend that may lie on what is drawn."""
STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "font.size": 9,
    "grid.color": INK,
    "grid.alpha": 0.22,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.7,
    "svg.hashsalt": "simplevla",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One learning curve."""

    title: str
    """Title with the unit."""
    caption: str
    keys: tuple[str, ...]
    """Keys of metrics.jsonl; the panel is drawn if at least one was logged."""
    draw: Callable[[Axes, Sequence[Row]], None]


def _series(rows: Sequence[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(updates, values) where the value was logged and is a number."""
    pairs = [(row["update"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
    finite = [(x, y) for x, y in pairs if math.isfinite(y)]
    return np.array([x for x, _ in finite]), np.array([y for _, y in finite], float)


def _line(axes: Axes, rows: Sequence[Row], key: str, label: str, scale: float = 1.0, **style: Any) -> None:
    x, y = _series(rows, key)
    if len(x):
        axes.plot(x, scale * y, label=label, marker="o" if len(x) < 3 else None, markersize=3, **style)


def _lines(labels: Mapping[str, str], scale: float = 1.0) -> Callable[[Axes, Sequence[Row]], None]:
    """A drawing of one line per key, from 0 on or below it; with a legend if there are several."""

    def draw(axes: Axes, rows: Sequence[Row]) -> None:
        for key, label in labels.items():
            _line(axes, rows, key, label, scale)
        # The entropy of a diffusion head is negative.
        low, high = min(0.0, axes.dataLim.y0), max(0.0, axes.dataLim.y1)
        if high > low:
            room = 0.06 * (high - low)
            axes.set_ylim(low - room * (low < 0), high + room)
        axes.yaxis.set_major_formatter("{x:.4g}")
        if len(labels) > 1:
            axes.legend(fontsize=8)

    return draw


def _success(axes: Axes, rows: Sequence[Row]) -> None:
    _line(axes, rows, "train_success", "training rollouts (sampled)", 100, color=BEFORE)
    x, low = _series(rows, "eval_low")
    _, high = _series(rows, "eval_high")
    if len(x) and len(low) == len(high):
        axes.fill_between(x, 100 * low, 100 * high, color=AFTER, alpha=0.18, linewidth=0)
    _line(axes, rows, "eval_success", "evaluation (greedy, train states)", 100, color=AFTER)
    axes.set_ylim(0, 101)
    axes.legend(fontsize=8, loc="lower right")


def _groups(axes: Axes, rows: Sequence[Row]) -> None:
    labels = {"groups_mixed": "mixed", "groups_all_failed": "all failed", "groups_all_solved": "all solved"}
    complete = [row for row in rows if row.get("groups_sampled") and all(key in row for key in labels)]
    shares = [[100 * row[key] / row["groups_sampled"] for row in complete] for key in labels]
    axes.stackplot(
        [row["update"] for row in complete],
        shares,
        labels=list(labels.values()),
        colors=(AFTER, "#d9622b", "#12a37a"),
        alpha=0.75,
    )
    axes.set_ylim(0, 101)
    axes.legend(fontsize=8, loc="lower right", **FRAMED)


def _tasks(axes: Axes, rows: Sequence[Row]) -> None:
    counted = [row for row in rows if row.get("success_by_task")]
    for task in sorted({task for row in counted for task in row["success_by_task"]}):
        there = [(row["update"], row["success_by_task"][task]) for row in counted if task in row["success_by_task"]]
        points = [(update, 100 * solved / n) for update, (solved, n) in there if n]
        axes.plot([x for x, _ in points], [y for _, y in points], label=task, linewidth=1.2)
    axes.set_ylim(0, 101)
    if len(axes.get_lines()) <= 10:
        axes.legend(fontsize=7, **FRAMED)


def _ratio(axes: Axes, rows: Sequence[Row]) -> None:
    x, low = _series(rows, "ratio_min")
    _, high = _series(rows, "ratio_max")
    if len(x) and len(low) == len(high):
        axes.fill_between(x, low, high, alpha=0.18, linewidth=0, color=AFTER, label="smallest to largest")
    _line(axes, rows, "ratio_mean", "mean", color=AFTER)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:.2g}")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_minor_formatter("{x:.2g}")
    axes.legend(fontsize=8, **FRAMED)


def _stages(axes: Axes, rows: Sequence[Row]) -> None:
    labels = {"collect_s": "rollout", "update_s": "update", "eval_s": "evaluation"}
    x = np.array([row["update"] for row in rows])
    bottom = np.zeros(len(rows))
    for key, label in labels.items():
        heights = np.array([float(row.get(key) or 0) for row in rows])
        axes.bar(x, heights, bottom=bottom, label=label, width=0.8)
        bottom += heights
    axes.legend(fontsize=8, **FRAMED)


PANELS = (
    Panel(
        title="Success, %",
        caption="Training rollouts of all sampled groups; evaluation with its 95 % Wilson interval.",
        keys=("train_success", "eval_success"),
        draw=_success,
    ),
    Panel(
        title="Groups sampled, %",
        caption="Only mixed groups carry a learning signal.",
        keys=("groups_mixed",),
        draw=_groups,
    ),
    Panel(
        title="Training success per task, %",
        caption="Sampled at the training temperature.",
        keys=("success_by_task",),
        draw=_tasks,
    ),
    Panel(
        title="Entropy, nats",
        caption="Mean over sampled units.",
        keys=("entropy",),
        draw=_lines({"entropy": "entropy"}),
    ),
    Panel(
        title="Approximate KL, nats",
        caption="Mean of ratio - 1 - log ratio: how far one update moves the policy.",
        keys=("approx_kl",),
        draw=_lines({"approx_kl": "approx. KL"}),
    ),
    Panel(
        title="Clip fractions, %",
        caption="Low and high: units whose gradient the clip cuts. Outside: ratio beyond the band, either sign.",
        keys=("clipfrac_low", "clipfrac_high", "ratio_outside"),
        draw=_lines({"clipfrac_low": "low", "clipfrac_high": "high", "ratio_outside": "outside"}, scale=100),
    ),
    Panel(
        title="Ratio new / old probability",
        caption="1 before the first optimizer step of an update.",
        keys=("ratio_mean",),
        draw=_ratio,
    ),
    Panel(
        title="Gradient norm",
        caption="Before clipping, mean over the update's optimizer steps.",
        keys=("grad_norm",),
        draw=_lines({"grad_norm": "gradient norm"}),
    ),
    Panel(
        title="Log-probability gap, nats",
        caption="Rollout against update before any optimizer step: numerical noise only.",
        keys=("logprob_gap",),
        draw=_lines({"logprob_gap": "gap"}),
    ),
    Panel(
        title="Throughput per second",
        caption="Of the rollout stage.",
        keys=("env_steps_per_s", "decisions_per_s"),
        draw=_lines({"env_steps_per_s": "env steps", "decisions_per_s": "decisions"}),
    ),
    Panel(
        title="Time per stage, s",
        caption="Wall time of each update's stages.",
        keys=("collect_s", "update_s", "eval_s"),
        draw=_stages,
    ),
)


IMITATION_PANELS = (
    Panel(
        title="Imitation loss",
        caption="Means since the point before; validation is on held-out demonstrations.",
        keys=("loss", "validation_loss"),
        draw=_lines({"loss": "training", "validation_loss": "validation"}),
    ),
    Panel(
        title="Success while it imitated, %",
        caption="Greedy, closed loop, on train initial states.",
        keys=("success",),
        draw=_lines({"success": "success"}, scale=100),
    ),
)


def imitation_curves(rows: Sequence[Row]) -> list[tuple[Panel, str]]:
    """Panels of a run of `sft` as (panel, SVG), those that have data. Bottom axis: batches."""
    rows = [{**row, "update": row["batch"]} for row in rows]
    return [
        (panel, _curve(panel, rows, "batch"))
        for panel in IMITATION_PANELS
        if any(row.get(key) is not None for row in rows for key in panel.keys)
    ]


def learning_curves(rows: Sequence[Row]) -> tuple[list[tuple[Panel, str]], list[str]]:
    """Panels as ([(panel, SVG)], titles of panels without data). Bottom axis: updates; top: episodes."""
    drawn: list[tuple[Panel, str]] = []
    missing: list[str] = []
    for panel in PANELS:
        if any(row.get(key) is not None for row in rows for key in panel.keys):
            drawn.append((panel, _curve(panel, rows)))
        else:
            missing.append(panel.title)
    return drawn, missing


def _curve(panel: Panel, rows: Sequence[Row], counted: str = "update") -> str:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.9), layout="constrained")
        axes = figure.subplots()
        panel.draw(axes, rows)
        axes.set_xlabel(counted)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        updates, episodes = _series(rows, "episodes_total")
        if len(updates) > 1:
            # The map between the axes is kept monotonic where no episode was counted before the first logged update.
            x, y = np.append(updates, updates[-1] + 1e6), np.append(episodes, episodes[-1] + 1e9)
            if updates[0] > 0:
                x, y = np.insert(x, 0, 0), np.insert(y, 0, 0)
            top = axes.secondary_xaxis("top", functions=(_interpolation(x, y), _interpolation(y, x)))
            top.set_xlabel("episodes")
            top.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        return _svg(figure)


def _interpolation(x: np.ndarray, y: np.ndarray) -> Callable[[Any], np.ndarray]:
    return lambda values: np.interp(np.asarray(values), x, y)


def steps_plot(pairs: Sequence[tuple[int, int]], first: str, second: str) -> str:
    """Env steps to success of states that both policies solve, a point each; below the line the second is faster."""
    x, y = np.array(pairs).T
    longest = max(x.max(), y.max()) * 1.05
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, longest], [0, longest], color=INK, linewidth=1, label="equally fast")
        axes.scatter(x, y, s=14, alpha=0.55, color=AFTER, linewidths=0)
        axes.set_xlim(0, longest)
        axes.set_ylim(0, longest)
        axes.set_xlabel(f"env steps {first}")
        axes.set_ylabel(f"env steps {second}")
        axes.legend(fontsize=8, loc="upper left")
        return _svg(figure)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def number_of_updates(rows: Iterable[Row]) -> int:
    """Rows that belong to an update; row 0 is the evaluation before the first."""
    return sum(row["update"] > 0 for row in rows)
