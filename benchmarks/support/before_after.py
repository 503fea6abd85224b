"""A picture of success rates before and after RL."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from simplevla.evaluation.result import Rate


def plot_before_after(names: Sequence[str], before: Sequence[Rate], after: Sequence[Rate], file: Path) -> None:
    """A pair of bars for each name, with 95 % Wilson intervals."""
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.42 * len(names)), layout="constrained")
    places = np.arange(len(names))
    for shift, rates, label, color in ((-0.2, before, "after SFT", "0.7"), (0.2, after, "after RL", "C0")):
        values = np.array([[rate.rate, rate.low, rate.high] for rate in rates]).T * 100
        errors = np.abs(values[1:] - values[0])
        axes.barh(places + shift, values[0], 0.38, xerr=errors, label=label, color=color, ecolor="0.3", capsize=2)
    axes.set(xlabel="greedy success, %", xlim=(0, 100))
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.legend()
    figure.savefig(file, dpi=110)
    plt.close(figure)
