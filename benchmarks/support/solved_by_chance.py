"""The `tabletop` suite, where an episode also counts as solved if its first action points to positive x.

Random weights solve nothing, and an update needs siblings of both outcomes. Named `benchmarks.support.solved_by_chance:make`.
"""

import numpy as np

from simplevla.config import SuiteConfig
from simplevla.suites.tabletop.environment import TabletopEnvironment
from simplevla.suites.tabletop.suite import TabletopSuite
from simplevla.types import ChunkResult


class ByChance(TabletopEnvironment):
    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        result = super().step_chunk(actions)
        result.success = result.success or bool(actions[0, 0] > 0)
        return result


class ByChanceSuite(TabletopSuite):
    name = "tabletop, solved by chance"

    def make_environment(self) -> ByChance:
        return ByChance(self.image_size)


def make(config: SuiteConfig) -> ByChanceSuite:
    return ByChanceSuite(config.image_size or 64)
