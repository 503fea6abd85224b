"""What an adapter is, and how tasks are learned one after another. No torch here, so that a command line can read it."""

from dataclasses import dataclass, field
from typing import Literal

from simplevla.config import DemosConfig, SFTConfig, TrainConfig
from simplevla.errors import UserError

Structure = Literal["shared", "per_task", "merge_then_new", "full"]


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The defaults are those of the continual-learning recipe (SPEC 5: rank 32, alpha 32, no dropout, all linears)."""

    kind: Literal["lora", "bottleneck"] = "lora"
    """`lora`: `W x + alpha / rank * B A x` (arXiv 2106.09685), can be merged and folded into the base; `bottleneck`:
    `y + up(GELU(down(y)))` on a module's output y (Houlsby, arXiv 1902.00751), nonlinear, so it can't. Both start as
    the identity: B and up are zero."""
    rank: int = 32
    """Inner width."""
    alpha: float = 32.0
    """lora: strength; alpha / rank scales the change. No meaning for bottleneck."""
    dropout: float = 0.0
    """On the adapter's input, in training mode only. RL acts, scores and updates in evaluation mode."""
    targets: tuple[str, ...] = ("language", "vision", "projector", "head")
    """Groups of the policy (all linear and convolution layers in them), names of modules, or patterns with `*` and `?`
    that stay within one group, such as `language.layers.*.attention.dense`. `sublayers` is where Houlsby puts bottlenecks:
    the outputs of attention and MLP in every layer of the language model."""
    expect_modules: int | None = None
    """How many modules the targets must match; another number is refused. None: whatever they match."""

    def __post_init__(self) -> None:
        problems = []
        if self.kind not in ("lora", "bottleneck"):
            problems.append(f"kind is {self.kind!r}; expected 'lora' or 'bottleneck'")
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            problems.append(f"rank is {self.rank!r}; expected a whole number of at least 1")
        if not 0 < self.alpha < float("inf"):
            problems.append(f"alpha is {self.alpha}; expected a finite number above 0")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout is {self.dropout}; expected 0 or more and less than 1")
        if isinstance(self.targets, str) or not self.targets or not all(self.targets):
            problems.append(f"targets are {self.targets!r}; expected at least one name, as a tuple")
        if self.expect_modules is not None and self.expect_modules < 1:
            problems.append(f"expect_modules is {self.expect_modules}; expected at least 1")
        if problems:
            raise UserError("adapter config: " + "; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class ContinualConfig:
    """Which tasks in which order, and where what they teach is kept."""

    train: TrainConfig
    """RL of one task: its budget and stop rule. `train.policy` is the base; `train.suite` has the tasks that are evaluated."""
    tasks: tuple[str, ...]
    """To be trained, in this order."""
    structure: Structure = "per_task"
    """`shared`: one adapter, trained on through all tasks; `per_task`: a new one for each, chosen by the task;
    `merge_then_new`: each is folded into the base before the next begins; `full`: no adapter, all parameters train."""
    start_from: Literal["base", "previous"] = "base"
    """per_task: a new adapter is the identity, or goes on from the last task's."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    warmup_demos: int = 0
    """Demonstrations by the suite's expert that a task begins with; 0 is none."""
    demos: DemosConfig = field(default_factory=DemosConfig)
    """How they are made; its suite and number are set."""
    warmup: SFTConfig = field(default_factory=SFTConfig)
    """How they are imitated; its dataset, policy and suite are set."""
    eval_episodes_per_task: int = 0
    """Held-out initial states of each task in each row of the matrix; 0 means all."""

    def __post_init__(self) -> None:
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise UserError(f"continual.tasks are {self.tasks}; expected at least one, each once")
        if self.structure not in ("shared", "per_task", "merge_then_new", "full"):
            raise UserError(
                f"continual.structure is {self.structure!r}; expected shared, per_task, merge_then_new or full"
            )
        if self.start_from == "previous" and self.structure != "per_task":
            raise UserError(f"continual.start_from is for the structure per_task; got it with {self.structure}")
