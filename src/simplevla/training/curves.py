"""Names of a run's curves in TensorBoard and in trackers: the keys of metrics.jsonl, in groups."""

from collections.abc import Mapping
from typing import Any

GROUPS = {
    "counters": ("episodes", "episodes_total", "env_steps", "env_steps_total", "elapsed_s"),
    "sampling": (
        *("train_success", "groups_sampled", "groups_mixed", "groups_all_failed", "groups_all_solved"),
        *("groups_broken", "groups_kept", "sampled_per_kept"),
    ),
    "update": (
        *("loss", "ratio_mean", "ratio_min", "ratio_max", "ratio_outside", "clipfrac_low", "clipfrac_high"),
        *("approx_kl", "entropy", "grad_norm", "lr", "optimizer_steps", "skipped_minibatches", "logprob_gap"),
        *("logprobs_recomputed", "logprob_gap_outside", "decisions", "units", "episode_env_steps"),
    ),
    "speed": (
        *("staleness", "rollout_wait_s", "collect_s", "policy_s", "wait_s", "env_steps_per_s", "decisions_per_s"),
        *("update_s", "eval_s", "env_errors", "retries", "unlike_starts", "worker_restarts"),
    ),
    "evaluation": ("eval_success", "eval_n", "eval_low", "eval_high"),
}
"""Group -> its keys, as the sections of docs/metrics.md have them."""
OTHER = "other"
"""Group of keys that are in none."""
BY_TASK = ("success_by_task", "eval_by_task", "held_out_by_task")
"""Keys whose values are task -> (solved, n); each is a group of its own."""


def curves(row: Mapping[str, Any], axis: str, group: str = "") -> dict[str, float]:
    """Curve -> value, of the numbers in a row, and of each task's share of solved episodes.

    Args:
        axis: the key that is the x-axis.
        group: the group of all keys but those that name theirs, as `success/press` does; by default that of `GROUPS`.
    """
    group_of = {key: name for name, keys in GROUPS.items() for key in keys}
    found: dict[str, float] = {}
    for key, value in row.items():
        if key in BY_TASK:
            found |= {f"{key}/{task}": solved / n for task, (solved, n) in value.items() if n}
        elif key != axis and isinstance(value, int | float):
            found[key if "/" in key else f"{group or group_of.get(key, OTHER)}/{key}"] = value
    return found
