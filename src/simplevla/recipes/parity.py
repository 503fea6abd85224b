"""Check that a checkpoint is as good here as where it was published, before RL hides a difference."""

from simplevla.evaluation.result import EvaluationResult
from simplevla.recipes.openvla_oft import PUBLISHED, PUBLISHED_EPISODES

UNLIKELY = 0.01
"""Below this p two success rates count as different."""


def parity(name: str, result: EvaluationResult) -> str:
    """Compares an evaluation by recipe `name` with the published successes (Fisher's exact test), in words."""
    got, published = result.overall, PUBLISHED[name]
    if result.split != "all" or got.n != PUBLISHED_EPISODES:
        return (
            f"published: SFT {published.sft} %, SFT + RL {published.rl} %, of {PUBLISHED_EPISODES} episodes on all initial states; "
            f"these are {got.n} of split {result.split!r}: for a comparison, --split all"
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
