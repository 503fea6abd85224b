"""Settings of adapters and of continual learning. No torch here, so that a command line reads them quickly."""

from dataclasses import field, replace
from typing import Annotated, Literal

from annotated_types import Ge, Le, Len

from simplevla.checked import Above0, Count, Positive, ShareBelow1, dataclass
from simplevla.config import DemosConfig, SFTConfig, TrainConfig
from simplevla.errors import UserError

Structure = Literal["shared", "per_task", "merge_then_new", "full"]


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """An adapter. The defaults are those of arXiv 2603.11653: LoRA, rank 32, alpha 32, no dropout, all linears."""

    kind: Literal["lora", "bottleneck"] = "lora"
    """`lora`: `W x + alpha / rank * B A x` (arXiv 2106.09685), can be merged and folded into the base; `bottleneck`:
    `y + up(GELU(down(y)))` on a module's output y (Houlsby, arXiv 1902.00751), nonlinear, so it can't. Both start as
    the identity: B and up are zero."""
    rank: Annotated[int, Ge(1), Le(2**20)] = 32
    """Inner width."""
    alpha: Above0 = 32.0
    """lora: strength; alpha / rank scales the change. No meaning for bottleneck."""
    dropout: ShareBelow1 = 0.0
    """Dropout on the adapter's input while it imitates. RL acts, scores and updates without."""
    targets: Annotated[tuple[Annotated[str, Len(1)], ...], Len(1)] = ("language", "vision", "projector", "head")
    """Groups of the policy (all linear and convolution layers in them), names of modules, or patterns with `*` and `?`
    that stay within one group, such as `language.layers.*.attention.dense`. `sublayers` is where Houlsby puts
    bottlenecks: the outputs of attention and MLP in every layer of the language model."""
    expect_modules: Positive | None = None
    """Number of modules that the targets must match; another number is refused. None accepts any number."""


@dataclass(frozen=True, kw_only=True)
class ContinualConfig:
    """Continual learning: the tasks in their order, and the parameters that keep what each teaches."""

    train: TrainConfig
    """RL of one task: budget and stop rule. `train.policy` is the base; `train.suite` has the evaluated tasks."""
    tasks: tuple[str, ...]
    """Tasks to train, in this order."""
    structure: Structure = "per_task"
    """`shared`: one adapter, trained on through all tasks; `per_task`: a new one for each, chosen by the task;
    `merge_then_new`: each is folded into the base before the next begins; `full`: no adapter, all parameters train."""
    start_from: Literal["base", "previous"] = "base"
    """per_task: a new adapter goes on from what acts on its task, the base or an adapter of the given policy, or from
    the last task's."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    stages: Literal["sft", "rl", "sft+rl"] | None = None
    """Ways to learn a task: imitation of its demonstrations, RL, or both; None: imitation where a task has
    demonstrations, then RL."""
    data: tuple[str, ...] = ()
    """Demonstrations of tasks, each `TASK=FOLDER` of a LeRobotDataset."""
    warmup_demos: Count = 0
    """Demonstrations by the suite's expert for each task without given ones; 0 is none."""
    demos: DemosConfig = field(default_factory=DemosConfig)
    """Settings of these demonstrations; their suite and number are overwritten."""
    warmup: SFTConfig = field(default_factory=SFTConfig)
    """Settings of the imitation of demonstrations; dataset, replay, policy, suite, seed, device,
    precision and tracker are overwritten."""
    replay_share: ShareBelow1 = 0.0
    """Share of each batch of imitation that is drawn from the earlier tasks' demonstrations (experience replay)."""
    eval_episodes_per_task: Count = 0
    """Held-out initial states of each task in each row of the matrix; 0 means all."""

    @property
    def folders(self) -> dict[str, str]:
        """Task -> folder of its given demonstrations."""
        return dict(given.split("=", 1) for given in self.data)

    def __post_init__(self) -> None:
        if not all("=" in given for given in self.data) or len(self.folders) < len(self.data):
            raise UserError(f"continual.data is {self.data}; expected TASK=FOLDER, each task once")
        if unknown := sorted(set(self.folders) - set(self.tasks)):
            raise UserError(
                f"continual.data has {', '.join(unknown)}; expected some of the tasks {', '.join(self.tasks)}"
            )
        if self.stages == "rl" and (self.data or self.warmup_demos):
            raise UserError(
                "continual.stages is 'rl', which learns from no demonstrations, and continual.data or warmup_demos gives some; "
                "choose 'sft+rl', or give none"
            )
        lacking = [task for task in self.tasks if task not in self.folders and not self.warmup_demos]
        if self.stages in ("sft", "sft+rl") and lacking:
            raise UserError(
                f"continual.stages is {self.stages!r}, and {', '.join(lacking)} has no demonstrations; give --data "
                f"{lacking[0]}=FOLDER, or --warmup-demos N for those of the suite's expert"
            )
        if self.replay_share and not (self.data or self.warmup_demos):
            raise UserError(
                f"continual.replay_share is {self.replay_share}, and no task has demonstrations; give --data TASK=FOLDER, or "
                "--warmup-demos N"
            )
        if self.replay_share:
            replace(self.warmup, replay=("those of earlier tasks",), replay_share=self.replay_share)
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise UserError(f"continual.tasks are {self.tasks}; expected at least one, each once")
        if self.start_from == "previous" and self.structure != "per_task":
            raise UserError(f"continual.start_from is for the structure per_task; got it with {self.structure}")
