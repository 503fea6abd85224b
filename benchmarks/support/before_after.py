"""A picture of success rates before and after RL."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from simplevla.evaluation.statistics import wilson


def plot_before_after(rows: Sequence[tuple[str, dict[str, Any]]], file: Path) -> None:
    """A pair of bars with 95 % Wilson intervals for each (name, row with `n`, `sft_success`, `rl_success`)."""
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.42 * len(rows)), layout="constrained")
    places = np.arange(len(rows))
    for shift, stage, label, color in ((-0.2, "sft", "after SFT", "0.7"), (0.2, "rl", "after RL", "C0")):
        rates = np.array([row[f"{stage}_success"] for _, row in rows])
        bounds = np.array([wilson(round(row[f"{stage}_success"] * row["n"]), row["n"]) for _, row in rows]).T
        errors = 100 * np.abs(bounds - rates)
        axes.barh(places + shift, 100 * rates, 0.38, xerr=errors, label=label, color=color, ecolor="0.3", capsize=2)
    axes.set(xlabel="greedy success, %", xlim=(0, 100))
    axes.set_yticks(places, [name for name, _ in rows])
    axes.invert_yaxis()
    axes.legend()
    figure.savefig(file, dpi=110)
    plt.close(figure)
