"""Check that a checkpoint is as good here as where it was published, before RL hides a difference."""

from simplevla.evaluation.result import EvaluationResult
from simplevla.recipes.openvla_oft import PUBLISHED, PUBLISHED_EPISODES
from simplevla.suites.base import Suite

UNLIKELY = 0.01
"""Below this p two success rates count as different."""


def parity(name: str, result: EvaluationResult, suite: Suite) -> str:
    """Compares an evaluation with the published successes (Fisher's exact test), in words.

    Args:
        name: of the recipe.
        result: of an evaluation by it, whose settings may have been changed.
        suite: the recipe's own.
    """
    got, published = result.overall, PUBLISHED[name]
    now: dict[str, object] = {"suite": result.suite, **result.protocol}
    own: dict[str, object] = {"suite": suite.name, **suite.protocol}
    others = [f"{key} {now.get(key)} for {own.get(key)}" for key in {**own, **now} if now.get(key) != own.get(key)]
    others += [] if result.greedy else [f"{result.how} for greedy"]
    if result.split != "all" or got.n + result.env_errors != PUBLISHED_EPISODES:
        others.append(f"{got.n} episodes of split {result.split!r} for {PUBLISHED_EPISODES} (--split all)")
    elif result.env_errors:
        others.append(f"{result.env_errors} of {PUBLISHED_EPISODES} episodes broken by the environment")
    if others:
        return (
            f"published: SFT {published.sft} %, SFT + RL {published.rl} %, of {PUBLISHED_EPISODES} episodes on all initial states; "
            f"not compared, since this evaluation differs: {'; '.join(others)}"
        )
    from scipy.stats import fisher_exact

    lines = []
    for what, rate in (("SFT", published.sft), ("SFT + RL", published.rl)):
        solved = round(rate / 100 * PUBLISHED_EPISODES)
        table = [[got.solved, got.n - got.solved], [solved, PUBLISHED_EPISODES - solved]]
        p = float(fisher_exact(table).pvalue)
        verdict = "differs" if p < UNLIKELY else "no difference seen"
        lines.append(f"published {what} {rate} %, here {100 * got.rate:.1f} %: p = {p:.2g}, {verdict}")
    return "\n".join(lines)
