"""Initial states that the report films: per task one chosen without knowing the outcome, and one of each kind."""

from dataclasses import dataclass

from simplevla.evaluation.result import EvaluationResult

State = tuple[str, int]
"""(task, initial state)."""

KINDS = {
    "gained": (False, True),
    "lost": (True, False),
    "solved both times": (True, True),
    "failed both times": (False, False),
}
"""Kind -> (solved before RL, solved after RL)."""

NEUTRAL_RULE = "The first evaluated initial state of each task that the environment broke in neither evaluation."
KIND_RULE = (
    "Gained is solved only after RL, lost only before. The first state of each kind, in the evaluation's order of tasks "
    "and states, that isn't shown above."
)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """States to film, and how many there are of each kind."""

    neutral: list[State]
    """States chosen by `NEUTRAL_RULE`."""
    of_kind: dict[str, State | None]
    """States chosen by `KIND_RULE`; one of `neutral` where all of a kind are there, None where there is none."""
    counts: dict[str, int]
    """Kind -> states, of all that both evaluations have."""

    @property
    def states(self) -> list[State]:
        """All, each once."""
        return list(dict.fromkeys([*self.neutral, *(state for state in self.of_kind.values() if state is not None)]))


def choose_states(before: EvaluationResult, after: EvaluationResult) -> Choice:
    """Chooses from the states that have an outcome in both evaluations, in the order of `before`."""
    solved_after = {(episode.task, episode.initial_state): episode.success for episode in after.episodes}
    outcomes: dict[State, tuple[bool, bool]] = {}
    first: dict[str, State] = {}
    for episode in before.episodes:
        state = (episode.task, episode.initial_state)
        if state in solved_after:
            outcomes[state] = (episode.success, solved_after[state])
            first.setdefault(episode.task, state)
    of_kind: dict[str, State | None] = {}
    counts: dict[str, int] = {}
    for kind, outcome in KINDS.items():
        states = [state for state, got in outcomes.items() if got == outcome]
        unseen = (state for state in states if state != first[state[0]])
        of_kind[kind] = next(unseen, next(iter(states), None))
        counts[kind] = len(states)
    return Choice(neutral=list(first.values()), of_kind=of_kind, counts=counts)
