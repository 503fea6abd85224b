"""Every setting of a run, in frozen keyword-only dataclasses, one per room. Recipes are functions that return these."""

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from simplevla.errors import UserError

T = TypeVar("T")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """Which tasks, and under which protocol."""

    name: str = "tabletop"
    """A registered suite (`simplevla list suites`) or `package.module:factory` for one of your own."""
    tasks: tuple[str, ...] = ()
    """Names of the tasks to use; empty means all of the suite's."""
    image_size: int | None = None
    """Side of the square camera images in pixels; None is the suite's default."""
    horizon: str | None = None
    """Horizon protocol: LIBERO has `openvla` (220/280/300/520) and `simplevla` (512), Meta-World `short` (200) and `metaworld`
    (500); None is the suite's default."""
    visuals: str | None = None
    """Visual mode: LIBERO has `stock` and `lite`, Meta-World `stock`, `fast` and `lite`; None is the suite's default."""
    stepping: str | None = None
    """Stepping mode: LIBERO has `stock` and `fast` (contact forces solved once per physics step); None is the suite's default."""


@dataclass(frozen=True, kw_only=True)
class DemosConfig:
    """Demonstrations by the suite's scripted expert, from train initial states, successful ones only."""

    suite: SuiteConfig = field(default_factory=SuiteConfig)
    episodes: int = 300
    """Successful demonstrations in all, spread evenly over the tasks."""
    noise: float = 0.3
    """Std of the disturbance added to executed actions, as a fraction of the action range; labels stay clean (DART)."""
    noise_probability: float = 0.3
    """Probability that an env step is disturbed."""
    levels: int = 0
    """Commands per direction that the demonstrator has, as on a key pad: labels are rounded to 1 / levels; 0 is no rounding."""
    hesitation: float = 0.0
    """Probability that the demonstrator moves at half speed for an env step, as people do; the label is halved too."""
    workers: int = 0
    """Worker processes; 0 means one per CPU core."""
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.episodes >= 1, f"demos.episodes is {self.episodes}; expected at least 1")
        _require(0 <= self.noise <= 2, f"demos.noise is {self.noise}; expected 0 to 2")
        _require(self.levels >= 0, f"demos.levels is {self.levels}; expected 0 (no rounding) or more")
        _require(0 <= self.hesitation <= 1, f"demos.hesitation is {self.hesitation}; expected 0 to 1")
        _require(
            0 <= self.noise_probability <= 1, f"demos.noise_probability is {self.noise_probability}; expected 0 to 1"
        )


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """Worker processes and slots."""

    workers: int = 0
    """Simulator processes; 0 means one per CPU core."""
    slots_per_worker: int = 12
    """Environments in each process (forced to 1 where a suite allows one per process)."""
    chunk_timeout_s: float = 120.0
    """A worker that needs longer for one chunk counts as hung and is replaced."""
    bfloat16: bool = False
    """Run the policy under bfloat16 autocast in rollouts; log-probabilities that then differ are computed again before the
    update."""
    compile: bool = False
    """Run the policy's towers through torch.compile (on a GPU with CUDA graphs); the first batches take long, and it needs a
    C++ compiler on CPU."""
    max_attempts: int = 3
    """How often an episode is run at most when its environment crashes."""

    def __post_init__(self) -> None:
        _require(self.workers >= 0, f"rollout.workers is {self.workers}; expected 0 (automatic) or more")
        _require(
            self.slots_per_worker >= 1, f"rollout.slots_per_worker is {self.slots_per_worker}; expected at least 1"
        )
        _require(self.max_attempts >= 1, f"rollout.max_attempts is {self.max_attempts}; expected at least 1")


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Rollouts on the actors of a Ray cluster; needs the extra `ray`."""

    actors: int = 0
    """Processes with environments and a replica of the policy each; 0: everything stays on this machine, without Ray."""
    cpus: float = 1.0
    """CPUs that Ray reserves for an actor, whose `rollout.workers` then share them."""
    gpus: float = 0.0
    """GPUs, or a part of one, that Ray reserves for an actor; its policy is there then, else on the CPU."""
    address: str = ""
    """Of a running cluster, `auto` for the one that this machine belongs to; empty starts one for the run."""
    answer_timeout_s: float = 600.0
    """An actor that says nothing for so long is replaced, and its episodes are run again."""
    simulators: int = 0
    """Processes with environments and nothing else, for each actor's policy, or for this process's if there are no actors; 0:
    `rollout.workers` processes beside each policy."""
    simulator_cpus: float = 1.0
    learners: int = 0
    """Processes that train the policy together; 0: this one, alone."""
    learner_cpus: float = 1.0
    learner_gpus: float = 0.0
    """What Ray reserves for each of them; with a GPU they train there."""
    divide: Literal["full", "copies"] = "full"
    """`full`: each learner keeps its part of parameters and optimizer (FSDP2); `copies`: all of them keep all (DDP)."""

    def __post_init__(self) -> None:
        _require(self.actors >= 0, f"ray.actors is {self.actors}; expected 0 (no Ray) or more")
        _require(
            self.cpus > 0 and self.gpus >= 0,
            f"ray.cpus is {self.cpus}, ray.gpus {self.gpus}; expected above 0, 0 or more",
        )
        _require(
            self.simulators >= 0, f"ray.simulators is {self.simulators}; expected 0 (workers beside the policy) or more"
        )
        _require(self.learners >= 0, f"ray.learners is {self.learners}; expected 0 (this process) or more")
        _require(self.divide in ("full", "copies"), f"ray.divide is {self.divide!r}; expected 'full' or 'copies'")
        _require(self.answer_timeout_s > 0, f"ray.answer_timeout_s is {self.answer_timeout_s}; expected above 0")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """What is sampled for one update."""

    groups: int = 64
    """Mixed groups that make one update (SPEC 1.5)."""
    group_size: int = 8
    """Siblings per group."""
    temperature: float = 1.0
    """Sampling temperature in training, of a token head; evaluation is greedy. The paper's pretrained 7B policy is so certain
    that it takes 1.6; a policy from scratch then samples far worse than it acts greedily."""
    eta: float = 1.0
    """Of a diffusion head's DDIM steps in training: 0 is deterministic but for the floor, 1 the full variance (SPEC 4)."""
    sigma_min: float = 0.1
    """Floor of a diffusion head's std at each denoising step, in normalised actions (SPEC 4)."""
    dynamic: bool = True
    """Replace groups without signal by fresh ones; off, every sampled group trains."""
    filter_low: float = 0.1
    filter_high: float = 0.9
    states: Literal["uniform", "posterior"] = "uniform"
    """Which train states groups start from: each once per epoch, or first those that are likely to give a mixed group."""
    max_oversampling: float = 4.0
    """At most this many groups are sampled per group wanted; then the update trains on what is mixed, or the run stops."""

    def __post_init__(self) -> None:
        _require(
            self.group_size >= 2,
            f"sampling.group_size is {self.group_size}; expected at least 2, since an advantage is relative to siblings (the paper uses 8)",
        )
        _require(self.groups >= 1, f"sampling.groups is {self.groups}; expected at least 1")
        _require(self.temperature > 0, f"sampling.temperature is {self.temperature}; expected above 0")
        _require(0 <= self.eta <= 1, f"sampling.eta is {self.eta}; expected 0 to 1")
        _require(
            self.sigma_min > 0,
            f"sampling.sigma_min is {self.sigma_min}; expected above 0, since the last denoising step has no density without it",
        )
        _require(
            self.max_oversampling >= 1, f"sampling.max_oversampling is {self.max_oversampling}; expected at least 1"
        )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """PPO clipping without KL and without entropy (SPEC 1.4)."""

    clip_low: float = 0.2
    clip_high: float = 0.28
    aggregation: Literal["episode", "unit"] = "episode"
    """`episode`: mean over an episode's units, then over episodes; `unit`: DAPO's mean over all units."""

    def __post_init__(self) -> None:
        _require(
            0 < self.clip_low < 1 and self.clip_high > 0,
            f"loss clips are {self.clip_low} / {self.clip_high}; expected 0 < clip_low < 1 and clip_high > 0",
        )


CHUNK_CLIP = 0.05
"""A larger clip range never binds on a ratio that is the mean over a chunk (SPEC 4 uses 0.01)."""


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig:
    """RL on a diffusion head: denoising steps as decisions (SPEC 4). A token head has none of this."""

    ratio: Literal["entry", "chunk"] = "entry"
    """What a probability ratio is of: one `entry` of the chunk at one denoising step, with clips as of tokens (0.2 / 0.28),
    or a whole `chunk`, by the mean over its entries, with clips of about 0.01. The two need their own clips."""
    discount: float = 0.99
    """Factor of the advantage for each denoising step before the last."""
    last_steps: int = 0
    """Train only the last so many denoising steps; 0 means all."""
    frozen_backbone: bool = False
    """Train the head alone: what the vision-language model saw is stored with each decision (kilobytes), and the update
    never runs it."""

    def __post_init__(self) -> None:
        _require(self.ratio in ("entry", "chunk"), f"denoising.ratio is {self.ratio!r}; expected 'entry' or 'chunk'")
        _require(0 < self.discount <= 1, f"denoising.discount is {self.discount}; expected above 0, at most 1")
        _require(self.last_steps >= 0, f"denoising.last_steps is {self.last_steps}; expected 0 (all) or more")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, constant learning rate after an optional linear warm-up."""

    lr: float | None = None
    """None: follows the policy's size and what of it is trained (training/learning_rate.py)."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    warmup_steps: int = 0
    states: Literal["float32", "8bit"] = "float32"
    """AdamW's moments: as they are, or quantised to 8 bits (torchao)."""

    def __post_init__(self) -> None:
        _require(
            self.lr is None or self.lr >= 0,
            f"optimizer.lr is {self.lr}; expected 0 or more, or None for the one that follows the policy",
        )


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Closed-loop success on given initial states."""

    split: Literal["train", "test", "all"] = "test"
    """`all` is both together, as published figures often are: no held-out states then."""
    episodes_per_task: int = 0
    """Initial states per task, the first ones of the split; 0 means all."""
    greedy: bool = True
    temperature: float = 1.0
    """Used only when `greedy` is off."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """Supervised fine-tuning on demonstrations."""

    dataset: str = ""
    """Folder of a LeRobotDataset v3.0."""
    policy: str = "nano"
    """Preset of the tinyvla policy to start from, or the folder of a saved policy."""
    head: Literal["tokens", "diffusion"] = "tokens"
    """Head of a new policy; a saved one keeps its own."""
    chunk_length: int = 5
    """Actions per decision of a new policy; a saved one keeps its own."""
    bounds: Literal["min_max", "quantile"] = "min_max"
    """The range of a new policy's actions: the demonstrations' extremes, or their 1 % and 99 % quantiles. With quantiles,
    demonstrated actions outside become the outermost bin, and the state is measured without its tails too."""
    batches: int = 1500
    batch_size: int = 128
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(weight_decay=0.01, warmup_steps=50))
    schedule: Literal["cosine", "constant"] = "cosine"
    shift_pixels: int = 2
    """Random translation of the images, up to this many pixels, in SFT only."""
    colour_jitter: float = 0.1
    """Random brightness and contrast, relative, in SFT only."""
    validation_fraction: float = 0.05
    """Share of the demonstrations that is held out for the validation loss."""
    validate_every: int = 250
    """Batches between validation losses, closed-loop evaluations and checkpoints."""
    eval_episodes_per_task: int = 0
    """Closed-loop episodes per task at each validation, on train states; 0 switches them off."""
    suite: SuiteConfig = field(default_factory=SuiteConfig)
    """Where they take place."""
    seed: int = 0

    def __post_init__(self) -> None:
        _require(
            self.batches >= 1 and self.batch_size >= 1,
            f"sft.batches {self.batches}, sft.batch_size {self.batch_size}; expected at least 1",
        )
        _require(
            self.bounds in ("min_max", "quantile"), f"sft.bounds is {self.bounds!r}; expected 'min_max' or 'quantile'"
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One RL run. The defaults are the paper's (arXiv 2509.09674) but for what depends on the policy, temperature and
    learning rate; recipes scale them."""

    suite: SuiteConfig = field(default_factory=SuiteConfig)
    policy: str = ""
    """Folder of the supervised policy to start from."""
    updates: int = 100
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    denoising: DenoisingConfig = field(default_factory=DenoisingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    minibatches: int = 4
    """Optimizer steps per update, over whole groups, one pass."""
    microbatch_decisions: int = 256
    """Decisions in one forward-backward; changes memory, not the result."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third more time."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    rollouts_ahead: bool = False
    """Roll out for the next update while this one trains, with weights that are one update old; the ratio is to them."""
    ray: RayConfig = field(default_factory=RayConfig)
    eval_every: int = 4
    """Updates between evaluations on train states (never on test); 0 switches them off."""
    eval_episodes_per_task: int = 10
    stop_at: float | None = None
    """Stop once an evaluation on train states reaches this success rate; None goes on to the last update."""
    checkpoint_every: int = 1
    keep_checkpoints: int = 3
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        _require(self.updates >= 0, f"updates is {self.updates}; expected 0 or more")
        _require(
            1 <= self.minibatches <= self.sampling.groups,
            f"minibatches is {self.minibatches}; expected 1 to sampling.groups ({self.sampling.groups}), since groups stay whole",
        )
        _require(
            self.denoising.ratio == "entry" or max(self.loss.clip_low, self.loss.clip_high) <= CHUNK_CLIP,
            f"denoising.ratio is 'chunk' with loss clips {self.loss.clip_low} / {self.loss.clip_high}; expected at most "
            f"{CHUNK_CLIP}, such as 0.01 both, or ratio 'entry'",
        )
        _require(
            not (self.rollouts_ahead and self.rollout.bfloat16),
            "rollouts_ahead with rollout.bfloat16; expected one of them, since log-probabilities of a policy that is gone can't be "
            "computed again in another precision",
        )
        _require(
            self.microbatch_decisions >= 1, f"microbatch_decisions is {self.microbatch_decisions}; expected at least 1"
        )
        _require(
            self.stop_at is None or (0 < self.stop_at <= 1 and self.eval_every > 0),
            f"stop_at is {self.stop_at} with eval_every {self.eval_every}; expected None, or above 0, at most 1, with evaluations",
        )
        _require(
            self.checkpoint_every >= 1 and self.keep_checkpoints >= 2,
            "expected checkpoint_every >= 1 and keep_checkpoints >= 2, so that one damaged checkpoint can be survived",
        )


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON types."""
    return dataclasses.asdict(config)


SCALARS: dict[Any, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (float, int), str: (str,)}
"""The types that JSON may have for a field of each type."""


def from_dict(cls: type[T], values: dict[str, Any]) -> T:
    """The config that `to_dict` wrote.

    Raises:
        UserError: on an unknown key, naming it and the nearest ones, if one without a default is missing, or if a number, text or
            switch is something else.
    """
    import difflib

    hints = typing.get_type_hints(cls)
    known: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(key, hints)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UserError(f"unknown key {key!r} in {cls.__name__}; expected one of {', '.join(hints)}.{hint}")
        if dataclasses.is_dataclass(hints[key]) and isinstance(value, dict):
            value = from_dict(typing.cast(Any, hints[key]), value)
        elif typing.get_origin(hints[key]) is tuple and isinstance(value, list):
            value = tuple(value)
        elif hints[key] in SCALARS and type(value) not in SCALARS[hints[key]]:
            raise UserError(f"{cls.__name__}.{key} is {value!r}; expected {hints[key].__name__}")
        known[key] = value
    none = dataclasses.MISSING
    fields = dataclasses.fields(typing.cast(Any, cls))
    required = [f.name for f in fields if f.default is none and f.default_factory is none]
    missing = [name for name in required if name not in known]
    if missing:
        raise UserError(f"{cls.__name__} lacks {', '.join(map(repr, missing))}; expected all of {', '.join(required)}")
    return cls(**known)
