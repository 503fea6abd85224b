"""Settings of a run, in frozen keyword-only dataclasses, one per package. Recipes are functions that return these."""

import dataclasses
import re
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from simplevla.checked import (
    Above0,
    AfterValidator,
    BeforeValidator,
    Count,
    Dimensions,
    Ge,
    Gt,
    Le,
    Len,
    Lt,
    NotNegative,
    Pixels,
    Positive,
    Processes,
    Seed,
    Share,
    ShareAbove0,
    ShareBelow1,
    also_read_as,
    dataclass,
)
from simplevla.errors import brief, require
from simplevla.reading import ReadingConfig


def _computes(device: str) -> str:
    require(
        re.fullmatch(r"cpu|cuda(:\d{1,3})?|mps", device) is not None,
        f"device is {brief(device)}; expected one that computes: cpu, cuda, cuda:N or mps",
    )
    return device


def _as_text(path: object) -> object:
    return str(path) if isinstance(path, Path) else path


def _is_path(path: str) -> str:
    require("\0" not in path, f"{brief(path)} holds a zero byte; expected the path of a folder")
    return path


Device = Annotated[str, AfterValidator(_computes)]
Folder = Annotated[str, BeforeValidator(_as_text), AfterValidator(_is_path)]
"""Given as a `Path` too; always held as text."""
Precision = Literal["float32", "bfloat16"]
Head = Literal["tokens", "diffusion", "flow"]
TrackerName = Literal["wandb", "trackio"]


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """A suite: its tasks and its protocol."""

    name: str = "tabletop"
    """A registered suite (`simplevla list suites`) or `package.module:factory` for one of your own."""
    tasks: tuple[str, ...] = ()
    """Names of the tasks to use; empty means all of the suite's."""
    image_size: Pixels | None = None
    """Side of the square camera images in pixels; None is the suite's default."""
    horizon_protocol: Annotated[str | None, also_read_as("horizon_protocol", "horizon")] = None
    """Episode lengths: LIBERO has `openvla` (220/280/300/520), `lerobot` (280/280/300/520) and `simplevla` (512),
    Meta-World `short` (200) and `metaworld` (500); None is the suite's default."""
    visuals: str | None = None
    """Visual mode: LIBERO has `stock` and `lite`, Meta-World also `fast`; None is the suite's default."""
    stepping: str | None = None
    """Stepping mode: LIBERO has `stock` and `fast` (contacts solved once a physics step); None: the default."""
    sentences: str | None = None
    """Source of the instructions: LIBERO has `bddl` (the task's own file) and `published` (published demonstrations and
    checkpoints were told them; made from the file's name); None: the default."""
    test_states: Positive | None = None
    """Initial states of each task that are held out: LIBERO's are the last 10 of its 50 unless told otherwise; other
    suites have no choice."""
    python: Annotated[Annotated[str, Len(1)] | None, BeforeValidator(_as_text)] = None
    """Interpreter that the simulator is installed for, such as `/opt/maniskill/bin/python`: it runs the suite's worker
    processes, and needs NumPy beside it and nothing of this package. None is the interpreter of the command."""


@dataclass(frozen=True, kw_only=True)
class DemosConfig:
    """Demonstrations by the suite's scripted expert, from train initial states, successful ones only."""

    suite: SuiteConfig = field(default_factory=SuiteConfig)
    episodes: Positive = 300
    """Successful demonstrations in all, spread evenly over the tasks."""
    noise: Annotated[float, Ge(0), Le(2)] = 0.3
    """Std of the disturbance of executed actions, as a share of half the action range; labels stay clean (DART)."""
    noise_probability: Share = 0.3
    """Probability that an env step is disturbed."""
    levels: Count = 0
    """Levels of a command per direction, as on a key pad: labels are rounded to 1 / levels; 0 is no rounding."""
    hesitation: Share = 0.0
    """Probability that the demonstrator moves at half speed for an env step, as people do; the label is halved too."""
    workers: Processes = 0
    """Worker processes; 0 means one per CPU core."""
    seed: Seed = 0
    """Seed of the disturbances and of the hesitation."""


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """Worker processes and slots."""

    workers: Processes = 0
    """Simulator processes; 0 means one per CPU core."""
    slots_per_worker: Annotated[int, Ge(1), Le(4096)] = 12
    """Environments in each process (forced to 1 where a suite allows one per process)."""
    chunk_timeout_s: Above0 = 120.0
    """A worker that needs longer for one chunk counts as hung and is replaced."""
    bfloat16: bool = False
    """Runs the policy under bfloat16 autocast in rollouts alone; log-probabilities that then differ are computed again
    before the update. `precision bfloat16` of a run is for both."""
    compile: bool = False
    """Runs the policy's towers through torch.compile (on a GPU with CUDA graphs); the first batches take long, and it
    needs a C++ compiler on CPU."""
    max_attempts: Annotated[int, Ge(1), Le(1000)] = 3
    """Most attempts at an episode whose environment crashes."""


@dataclass(frozen=True, kw_only=True)
class LearnersConfig:
    """Processes on a Ray cluster that train one policy together; they need the extra `ray`."""

    address: str = ""
    """Address of a running cluster; `auto` is the one that this machine belongs to, empty starts one for the run."""
    learners: Processes = 0
    """Processes that train the policy together; 0: this one, alone."""
    learner_cpus: NotNegative = 1.0
    """CPUs that Ray reserves for each learner."""
    learner_gpus: NotNegative = 0.0
    """GPUs that Ray reserves for each learner, which then trains there; 0 trains on CPUs."""
    divide: Literal["full", "copies"] = "full"
    """`full`: each learner keeps its part of parameters and optimizer (FSDP2); `copies`: all of them keep all (DDP)."""


@dataclass(frozen=True, kw_only=True)
class RayConfig(LearnersConfig):
    """Rollouts on the actors of a Ray cluster, and learners there; needs the extra `ray`."""

    actors: Processes = 0
    """Processes with environments and a replica of the policy each; 0 keeps everything on this machine, without Ray."""
    cpus: Above0 = 1.0
    """CPUs that Ray reserves for an actor, whose `rollout.workers` then share them."""
    gpus: NotNegative = 0.0
    """GPUs, or a part of one, that Ray reserves for an actor; its policy is there then, else on the CPU."""
    answer_timeout_s: Above0 = 600.0
    """An actor that says nothing for so long is replaced, and its episodes are run again."""
    simulators: Processes = 0
    """Processes with environments and nothing else, for each actor's policy, or for this process's if there are no
    actors; 0: `rollout.workers` processes beside each policy."""
    simulator_cpus: NotNegative = 1.0
    """CPUs that Ray reserves for each of the `simulators`."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Sampling of the episodes of one update."""

    groups: Positive = 64
    """Mixed groups that make one update; SimpleVLA-RL's code uses 64."""
    group_size: Annotated[int, Ge(2), Le(10**6)] = 8
    """Siblings per group; at least two, since an advantage is relative to siblings."""
    temperature: Above0 = 1.0
    """Sampling temperature in training, of a token head; evaluation is greedy. The paper's pretrained 7B policy is so
    certain that it takes 1.6; a policy from scratch then samples far worse than it acts greedily."""
    eta: Share = 1.0
    """Noise of a diffusion head's DDIM steps in training (arXiv 2010.02502): 0 is deterministic but for the floor
    `sigma_min`, 1 the full variance."""
    sigma_min: Above0 = 0.1
    """Floor of a diffusion head's std at each denoising step, in normalised actions, as in DPPO (arXiv 2409.00588).
    Without it the last step has no density."""
    alpha: Above0 = 0.5
    """Noise of a flow head's stochastic step in training with Flow-SDE (arXiv 2510.25889); it plays the part that
    temperature has for a token head."""
    dynamic: bool = True
    """Replaces groups without signal by fresh ones; off, every sampled group trains."""
    filter_low: Share = 0.1
    """Smallest mean success of a group that trains; the paper's 0.1 drops one success of eleven siblings or more."""
    filter_high: Share = 0.9
    """Largest mean success of a group that trains."""
    state_order: Annotated[Literal["uniform", "posterior"], also_read_as("state_order", "states")] = "uniform"
    """Order of the train states of groups: each once per epoch, or first those likely to give mixed groups."""
    max_oversampling: Annotated[float, Ge(1)] = 4.0
    """Most groups sampled per group wanted; then the update trains on what is mixed, or the run stops."""

    def __post_init__(self) -> None:
        require(
            self.filter_low <= self.filter_high,
            f"sampling.filter_low is {self.filter_low}; expected at most filter_high, {self.filter_high}",
        )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """PPO clipping without KL and without entropy, as in SimpleVLA-RL (arXiv 2509.09674)."""

    clip_low: Annotated[float, Gt(0), Lt(1)] = 0.2
    """A ratio below 1 minus this no longer trains towards less."""
    clip_high: Above0 = 0.28
    """A ratio above 1 plus this no longer trains towards more (clip-higher, arXiv 2503.14476)."""
    aggregation: Literal["episode", "unit"] = "episode"
    """`episode`: mean over an episode's units, then over episodes; `unit`: DAPO's mean over all units."""


CHUNK_CLIP = 0.05
"""Largest sensible clip range of a ratio that is the mean over a chunk: larger ones never bind. DPPO uses 0.01."""


@dataclass(frozen=True, kw_only=True)
class DenoisingConfig:
    """RL on a diffusion head: denoising steps as decisions (DPPO, arXiv 2409.00588); and on a flow head (pi_RL, arXiv
    2510.25889). A token head has none of this."""

    ratio: Literal["entry", "chunk"] = "entry"
    """Unit of a probability ratio. `entry`: one entry of the chunk at one denoising step, with the clips of tokens (0.2
    and 0.28). `chunk`: the whole chunk, by the mean over its entries, with clips of about 0.01."""
    discount: ShareAbove0 = 0.99
    """Factor of the advantage for each denoising step of a diffusion head before the last."""
    last_steps: Count = 0
    """Trains only the last so many denoising steps of a diffusion head; 0 means all."""
    flow: Literal["sde", "noise"] = "sde"
    """Noise of a flow head. `sde`: one step of each decision is stochastic, as much as `sampling.alpha` says
    (Flow-SDE), and an update passes the head once. `noise`: every step, by a learned standard deviation between 0.08
    and 0.16 (Flow-Noise)."""
    frozen_backbone: bool = False
    """Trains what follows the backbone alone: TinyVLA's head, or SmolVLA's expert and projections. What they read is
    stored with each decision, kilobytes with TinyVLA and megabytes with SmolVLA, and the update never runs the
    vision-language model on pictures and words."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW, constant learning rate after an optional linear warm-up."""

    lr: NotNegative | None = None
    """None: follows the policy's size and what of it is trained (training/learning_rate.py)."""
    betas: tuple[ShareBelow1, ShareBelow1] = (0.9, 0.999)
    """Decay of AdamW's means of the gradient and of its square."""
    weight_decay: NotNegative = 0.01
    """Decay of weights, relative to the learning rate; biases, norms and embeddings have none."""
    max_grad_norm: Above0 = 1.0
    """Norm to which a longer gradient is shortened."""
    warmup_steps: Count = 0
    """Optimizer steps over which the learning rate rises to its value."""
    moments: Annotated[Literal["float32", "8bit"], also_read_as("moments", "states")] = "float32"
    """Type of AdamW's moments: as they are, or quantised to 8 bits (torchao)."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Closed-loop success on given initial states."""

    split: Literal["train", "test", "all"] = "test"
    """`all` is both together, as published figures often are: no held-out states then."""
    episodes_per_task: Count = 0
    """Initial states per task, the first ones of the split; 0 means all."""
    greedy: bool = True
    """Takes the most likely action; off, actions are sampled."""
    temperature: Above0 = 1.0
    """Used only when `greedy` is off."""
    seed: Seed = 0
    """Seed of sampled actions, and of the noise that a diffusion or flow head starts from."""
    instruction: bool = True
    """Tells the policy what to do; off, it is told a blank, whatever the task."""
    instruction_of: str = ""
    """Task of the suite whose instruction the policy is told in every task; empty: each task's own."""


def require_learner_gpus(device: str, ray: LearnersConfig) -> None:
    """Refuses learners on CPUs where a GPU is asked for.

    Raises:
        UserError: there are some.
    """
    require(
        device == "cpu" or not ray.learners or ray.learner_gpus > 0,
        f"device is {device!r}, and the {ray.learners} ray.learners have no GPU; give --ray.learner-gpus 1, or --device cpu",
    )


@dataclass(frozen=True, kw_only=True)
class SFTConfig(ReadingConfig):
    """Supervised fine-tuning on demonstrations."""

    dataset: Folder = ""
    """Folder of a LeRobotDataset v3.0 or v2.1, or `hf://OWNER/NAME` on the hub."""
    policy: Folder = "nano"
    """Preset of a new policy (`simplevla list policies`), or a saved policy to start from: its folder, or
    `hf://OWNER/NAME` on the hub."""
    head: Head | None = None
    """Head of a new policy; None: the preset's, tokens for TinyVLA. A saved policy keeps its own."""
    chunk_length: Dimensions = 5
    """Actions per decision of a new policy; a saved one keeps its own."""
    bounds: Literal["min_max", "quantile"] = "min_max"
    """The range of a new policy's actions: the demonstrations' extremes, or their 1 % and 99 % quantiles. With
    quantiles, demonstrated actions outside become the outermost bin, and the state is cut off alike."""
    memory_gb: Above0 | None = None
    """Memory for decoded demonstrations, GB of 1e9 bytes; None: a quarter of the machine's. If the dataset needs more,
    worker processes decode its pictures while the policy trains."""
    batches: Positive = 1500
    """Optimizer steps, each on one batch."""
    batch_size: Annotated[int, Ge(1), Le(10**6)] = 128
    """Samples of a batch: a frame with the chunk of actions that begins there."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(weight_decay=0.01, warmup_steps=50))
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up: down to 0 along half a cosine, or constant."""
    microbatch_size: Count = 0
    """Samples in one forward-backward; changes memory, not the result; 0: the whole batch."""
    precision: Precision = "float32"
    """`bfloat16`: products are computed in it, by autocast; parameters, gradients and optimizer stay float32. A policy
    that is itself of bfloat16 computes in it either way, and is stepped through float32 masters."""
    gradient_checkpointing: bool = False
    """Computes activations again in the backward pass: less memory, a third more time."""
    adapter_rank: Count = 0
    """Trains a new LoRA of this rank (`sft` in the policy's bank), alpha equal to it, and the base stays frozen; 0
    trains all that the policy lets be trained, such as the adapter that a saved one has ready."""
    ray: LearnersConfig = field(default_factory=LearnersConfig)
    shift_pixels: Annotated[int, Ge(0), Le(8192)] = 2
    """Random translation of the images, up to this many pixels, in SFT only."""
    colour_jitter: Share = 0.1
    """Random brightness and contrast, relative, in SFT only."""
    validation_fraction: ShareBelow1 = 0.05
    """Share of the demonstrations that is held out for the validation loss."""
    validate_every: Positive = 250
    """Batches between validation losses, closed-loop evaluations and checkpoints."""
    eval_episodes_per_task: Count = 0
    """Closed-loop episodes per task at each validation, on train states; 0 switches them off."""
    suite: SuiteConfig = field(default_factory=SuiteConfig)
    """Suite of these episodes."""
    replay: tuple[Folder, ...] = ()
    """Datasets of tasks that were learned before, read by the same settings: each batch has samples of theirs too."""
    replay_share: ShareBelow1 = 0.5
    """Share of each batch that is drawn from the frames of `replay`."""
    seed: Seed = 0
    """Seed of a new policy, of the batches and of the held-out demonstrations."""
    device: Device = "cpu"
    """Device of training, validation and closed-loop evaluation; `ray.learners` train on their own GPUs."""
    tracker: TrackerName | None = None
    """Experiment tracker that gets the curves too; each needs the extra of its name."""

    def __post_init__(self) -> None:
        require_learner_gpus(self.device, self.ray)
        require(
            not self.replay or 0 < self.replay_samples < self.batch_size,
            f"replay_share {self.replay_share} of batches of {self.batch_size} is {self.replay_samples} samples; expected at least "
            "one, and one of what is learned",
        )

    @property
    def replay_samples(self) -> int:
        """Samples of each batch that are drawn from `replay`."""
        return round(self.replay_share * self.batch_size) if self.replay else 0

    def validates(self, done: int) -> bool:
        """True when validation and a checkpoint are due after `done` batches."""
        return done % self.validate_every == 0 or done == self.batches


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One RL run. The defaults are the paper's (arXiv 2509.09674) but for what depends on the policy, temperature and
    learning rate; recipes scale them."""

    suite: SuiteConfig = field(default_factory=SuiteConfig)
    policy: Folder = ""
    """The supervised policy to start from: its folder, or `hf://OWNER/NAME[@REVISION][/FOLDER]` on the hub."""
    updates: Count = 100
    """Number of updates, each of fresh rollouts."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    denoising: DenoisingConfig = field(default_factory=DenoisingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    minibatches: Positive = 4
    """Optimizer steps per update, over whole groups, one pass."""
    microbatch_decisions: Positive = 256
    """Decisions in one forward-backward; changes memory, not the result."""
    precision: Precision = "float32"
    """`bfloat16`: rollouts, evaluations and updates compute products in it, by autocast; parameters, gradients and
    optimizer stay float32. A policy that is itself of bfloat16 computes in it either way."""
    gradient_checkpointing: bool = False
    """Computes activations again in the backward pass: less memory, a third more time."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    rollouts_ahead: bool = False
    """Rolls out for the next update while this one trains, with weights one update old; the ratio is to them."""
    ray: RayConfig = field(default_factory=RayConfig)
    eval_every: Count = 4
    """Updates between evaluations on train states (never on test); 0 switches them off."""
    eval_episodes_per_task: Positive = 10
    """Train states of each task in these evaluations."""
    stop_at: ShareAbove0 | None = None
    """Stops once an evaluation on train states reaches this success rate; None goes on to the last update."""
    checkpoint_every: Positive = 1
    """Updates between checkpoints."""
    keep_checkpoints: Annotated[int, Ge(2), Le(10**6)] = 3
    """Number of latest checkpoints to keep; at least two, so that a run survives a damaged one."""
    seed: Seed = 0
    """Seed of all that is random."""
    device: Device = "cpu"
    """Device on which the policy acts and trains."""
    title: str = ""
    """Title of the report. A recipe sets it to its name; without one the suite's is taken."""
    tracker: TrackerName | None = None
    """Experiment tracker that gets the curves too; each needs the extra of its name."""

    def __post_init__(self) -> None:
        require_learner_gpus(self.device, self.ray)
        require(
            not (self.denoising.frozen_backbone and self.ray.learners),
            "denoising.frozen_backbone keeps what the backbone read beside each decision, which ray.learners can't have yet; "
            "expected one of them",
        )
        require(
            self.minibatches <= self.sampling.groups,
            f"minibatches is {self.minibatches}; expected 1 to sampling.groups ({self.sampling.groups}), since groups stay whole",
        )
        require(
            self.denoising.ratio == "entry" or max(self.loss.clip_low, self.loss.clip_high) <= CHUNK_CLIP,
            f"denoising.ratio is 'chunk' with loss clips {self.loss.clip_low} / {self.loss.clip_high}; expected at most "
            f"{CHUNK_CLIP}, such as 0.01 both, or ratio 'entry'",
        )
        require(
            not (self.rollouts_ahead and self.rollout.bfloat16),
            "rollouts_ahead with rollout.bfloat16; expected one of them, since log-probabilities of a policy that is gone can't be "
            "computed again in another precision",
        )
        require(
            self.stop_at is None or self.eval_every > 0,
            f"stop_at is {self.stop_at} with eval_every {self.eval_every}; expected None, or evaluations",
        )


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON types."""
    return dataclasses.asdict(config)
