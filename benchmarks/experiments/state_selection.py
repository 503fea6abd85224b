"""Initial states chosen uniformly, and by the chance that their group has both outcomes, from the same supervised policies:
`python -m benchmarks.experiments.state_selection --seeds 0 1 2 --updates 30` after benchmarks/experiments/training_seeds.py has made the policies.

Writes docs/results/state_selection.json, .md and .png. Runs that are finished in --runs are not run again.
"""

from dataclasses import replace

import tyro

from benchmarks.experiments.exploration_tricks import Arguments, Variants, measure

VARIANTS: Variants = {
    "uniform": ("each state once per epoch", lambda c: c),
    "posterior": (
        "states whose group is likely to be mixed first",
        lambda c: replace(c, sampling=replace(c.sampling, state_order="posterior")),
    ),
}

if __name__ == "__main__":
    measure("state_selection", "Which initial states to sample", "states", VARIANTS, tyro.cli(Arguments))
