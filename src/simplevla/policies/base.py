"""The contract between a policy and the algorithm, which sees U sampled units per decision and a mask, nothing else."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from simplevla.config import Head, Precision, SamplingConfig, TrainConfig
from simplevla.errors import UserError
from simplevla.policies.normalization import Statistics
from simplevla.policies.precision import in_own_precision, require_bfloat16
from simplevla.policies.trained_on import TrainedOn
from simplevla.types import Observation


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings by which actions are sampled, and scored alike."""

    temperature: float = 1.0
    """Temperature of a token head's logits."""
    eta: float = 1.0
    """Noise of a diffusion head's DDIM steps: 0 is deterministic but for the floor `sigma_min`, 1 the full variance."""
    sigma_min: float = 0.1
    """Floor of a diffusion head's std per denoising step, in normalised actions; without it the last has no density."""
    alpha: float = 0.5
    """Noise of a flow head's stochastic step."""
    greedy: bool = False

    @classmethod
    def of(cls, config: SamplingConfig) -> "Sampling":
        """Settings by which training episodes are sampled and scored."""
        return cls(temperature=config.temperature, eta=config.eta, sigma_min=config.sigma_min, alpha=config.alpha)


@dataclass(frozen=True, kw_only=True)
class ObservationBatch:
    """B observations as tensors; images stay uint8 until the policy normalises them."""

    images: dict[str, Tensor]
    """Camera -> uint8 [B, height, width, 3]."""
    state: Tensor
    """float32 [B, S], in the suite's units (the policy normalises)."""
    instructions: list[str]
    index: Tensor | None = None
    """Row of the observation that each of D decisions looks at, int64 [D]; None: each has its own, in order."""

    @classmethod
    def stacked(
        cls, seen: Sequence[Observation], instructions: list[str], index: Tensor | None = None
    ) -> "ObservationBatch":
        """The batch of these observations, which are copied, and of as many instructions."""
        return cls(
            images={
                camera: torch.from_numpy(np.stack([one.images[camera] for one in seen])) for camera in seen[0].images
            },
            state=torch.from_numpy(np.stack([one.state for one in seen])),
            instructions=instructions,
            index=index,
        )

    def __len__(self) -> int:
        """Number of observations B; fewer than the decisions D if several share one."""
        return len(self.instructions)

    def to(self, device: torch.device) -> "ObservationBatch":
        return ObservationBatch(
            images={k: v.to(device, non_blocking=True) for k, v in self.images.items()},
            state=self.state.to(device, non_blocking=True),
            instructions=self.instructions,
            index=None if self.index is None else self.index.to(device, non_blocking=True),
        )

    def observed(self) -> list[int]:
        """Row of the observations that each decision looks at."""
        return list(range(len(self))) if self.index is None else self.index.tolist()

    def take(self, decisions: Sequence[int]) -> "ObservationBatch":
        """The batch of these decisions alone."""
        observed = self.observed()
        rows = list(dict.fromkeys(observed[decision] for decision in decisions))
        place = {row: number for number, row in enumerate(rows)}
        return self._rows(rows, shared_index([place[observed[decision]] for decision in decisions], len(rows)))

    def _rows(self, rows: list[int], index: Tensor | None = None) -> "ObservationBatch":
        return ObservationBatch(
            images={camera: image[rows] for camera, image in self.images.items()},
            state=self.state[rows],
            instructions=[self.instructions[row] for row in rows],
            index=index,
        )

    def filled(self, multiple: int) -> "ObservationBatch":
        """The batch filled up to a multiple of rows with copies of its last row, whose outputs are unused; no index."""
        missing = -len(self) % multiple
        if missing == 0:
            return replace(self, index=None)
        return self._rows([*range(len(self)), *[len(self) - 1] * missing])

    def distinct(self) -> "ObservationBatch":
        """The same decisions with equal observations once, such as the one that siblings begin with."""
        if self.index is not None:
            return self
        found: dict[tuple[str, bytes], int] = {}
        rows: list[int] = []
        index: list[int] = []
        for row, (instruction, state) in enumerate(zip(self.instructions, self.state.cpu().numpy(), strict=True)):
            place = found.setdefault((instruction, state.tobytes()), len(rows))
            if place == len(rows) or not self._same_images(rows[place], row):
                place = len(rows)
                rows.append(row)
            index.append(place)
        return self if len(rows) == len(index) else replace(self.take(rows), index=shared_index(index, len(rows)))

    def _same_images(self, one: int, other: int) -> bool:
        return all(torch.equal(image[one], image[other]) for image in self.images.values())

    def per_decision(self, outputs: Tensor) -> Tensor:
        """Outputs per decision, [D, ...], from outputs per observation, [B, ...]."""
        return outputs if self.index is None else outputs[self.index]


def shared_index(places: list[int], rows: int) -> Tensor | None:
    """None where every decision has a row of its own; places count up in the order of their first use."""
    return None if len(places) == rows else torch.tensor(places)


@dataclass(frozen=True, kw_only=True)
class ActionSample:
    """B decisions."""

    actions: np.ndarray
    """float32 [B, H, A] in the environment's units."""
    logprobs: Tensor
    """float32 [B, U] of the sampled units at the sampling temperature."""
    trace: Tensor
    """Samples from which `score` recomputes `logprobs`: token ids int64 [B, U], or flat denoising states float32."""


class Adapters(Protocol):
    """The adapters of a policy, as far as it knows them (adapters/bank.py)."""

    @property
    def names(self) -> list[str]: ...

    def save(self, folder: Path) -> None: ...


class Policy(nn.Module, ABC):
    """A vision-language-action policy that can be imitated into and trained by policy gradient."""

    presets: tuple[str, ...] = ()
    """Sizes that `create` makes; none where every policy begins with a published checkpoint."""
    not_decayed: tuple[str, ...] = ()
    """Endings of the names of embeddings and the like, which weight decay spares."""
    adapter_bank: Adapters | None = None
    """Adapters of the policy, which are saved with it."""
    cameras: tuple[str, ...]
    """Names of the cameras it looks through; observations may have more."""
    state_dim: int
    chunk_length: int
    action_dim: int
    units: int
    """U, sampled units per decision."""
    scores_from_trace: bool = False
    """True if `score` needs nothing but the trace; images are then not kept."""
    shares_observations: bool = False
    """True if `act` and `score` take batches with an `index`, so that shared observations are computed once."""
    statistics: Statistics
    """Statistics by which the policy normalises, frozen; adapters record their fingerprint."""
    action_bounds: tuple[str, str] | None = ("min", "max")
    """The measures of its statistics between which its actions lie; None: nothing bounds them."""
    unused_settings: Mapping[str, str] = dict.fromkeys(
        (
            *("sampling.eta", "sampling.sigma_min"),
            *("denoising.ratio", "denoising.discount", "denoising.last_steps", "denoising.frozen_backbone"),
        ),
        "the policy has no diffusion head",
    ) | dict.fromkeys(("sampling.alpha", "denoising.flow"), "the policy has no flow head")
    """Settings of RL that the policy has no use for -> why."""
    trained_on: tuple[TrainedOn, ...] = ()
    """The stages of its training; empty where nobody knows."""
    precision: Precision = "float32"
    """Precision of the products in `act`, `score` and `imitation_loss`; set by `compute_in`, and not saved."""
    caches_casts: bool = True
    """True if autocast casts a weight once for all its uses. Its cache is the process's, and each thread empties it:
    where two threads compute, timing would decide in which precision the gradients of several uses are summed."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Lets the class's entry points compute in `precision`: whoever rolls out, learns or evaluates does alike."""
        super().__init_subclass__(**kwargs)
        for name in {"act", "score", "imitation_loss"} & vars(cls).keys():
            setattr(cls, name, in_own_precision(vars(cls)[name]))

    def compute_in(self, precision: Precision) -> None:
        """Computes products in `precision` from now on, on the device where the policy is; parameters stay as they are.

        Raises:
            UserError: the device doesn't multiply in it.
        """
        if precision == "bfloat16":
            weight = next(self.parameters(), None)
            require_bfloat16(torch.device("cpu") if weight is None else weight.device)
        self.precision = precision

    @property
    @abstractmethod
    def unit_action_index(self) -> np.ndarray:
        """int64 [U]: the action in the chunk that each unit belongs to; units of unexecuted actions are masked."""

    @property
    def imitated_length(self) -> int:
        """Actions that `imitation_loss` takes; more than `chunk_length` where more are predicted than executed."""
        return self.chunk_length

    @property
    def known_instruction(self) -> str:
        """An instruction that it takes: one that it was trained on, if anybody knows one."""
        return next((stage.instructions[0] for stage in self.trained_on[::-1] if stage.instructions), "go")

    @property
    def unit_discount(self) -> np.ndarray:
        """float32 [U]: how much of the advantage each unit gets."""
        return np.ones(self.units, np.float32)

    @property
    def unit_clip_scale(self) -> np.ndarray:
        """float32 [U]: each unit's clip range as a share of the configured one."""
        return np.ones(self.units, np.float32)

    def prepare_for_rl(self, config: TrainConfig) -> None:
        """Takes what of the settings concerns the policy; called before RL, on the policy's device. Overrides call it.

        Raises:
            UserError: a setting that this policy or its device can't have.
        """
        self.compute_in(config.precision)

    def spared_from_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone, in SFT and RL: biases, norms, embeddings."""
        return {name for name, p in self.named_parameters() if p.ndim < 2 or name.endswith(self.not_decayed)}

    def empty_trace(self, rows: int) -> Tensor:
        """A trace of `rows` decisions as `act` gives it, of zeros."""
        return torch.zeros(rows, self.units, dtype=torch.int64)

    def check_observations(self, batch: ObservationBatch) -> None:
        """Refuses observations that this policy wasn't made for.

        Raises:
            UserError: a camera is missing, or the state has another size.
        """
        missing = [camera for camera in self.cameras if camera not in batch.images]
        if missing:
            raise UserError(
                f"observations have cameras {', '.join(batch.images)}; this policy also needs {', '.join(missing)}"
            )
        if batch.state.shape[1] != self.state_dim:
            raise UserError(
                f"observations have {batch.state.shape[1]} state dimensions; this policy takes {self.state_dim}"
            )

    def act_on(self, observation: Observation, instruction: str) -> np.ndarray:
        """The greedy chunk float32 [H, A] for one observation, in the environment's units.

        Raises:
            UserError: a picture isn't uint8 [height, width, 3], a camera is missing, or the state has another size.
        """
        images = {camera: np.asarray(image) for camera, image in observation.images.items()}
        for camera, image in images.items():
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise UserError(
                    f"camera {camera!r}: got {image.dtype} {list(image.shape)}; expected uint8 [height, width, 3], RGB"
                )
        seen = Observation(images=images, state=np.asarray(observation.state, np.float32))
        batch = ObservationBatch.stacked([seen], [instruction]).to(next(self.parameters()).device)
        return self.act(batch, Sampling(greedy=True), [np.random.default_rng()]).actions[0]

    @abstractmethod
    def act(
        self, batch: ObservationBatch, sampling: Sampling, generators: Sequence[np.random.Generator]
    ) -> ActionSample:
        """Draws one chunk per decision; each uses its own generator, so results don't depend on the batch."""

    @abstractmethod
    def score(self, batch: ObservationBatch, trace: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
        """(logprobs [D, U], entropy [D, U]) of the decisions' `trace`, with gradients."""

    def checkpoint_activations(self) -> None:
        """Computes activations again in the next backward passes, until `eval()` or `train()` is called."""
        raise UserError(f"{type(self).__name__} has no gradient checkpointing; leave gradient_checkpointing off")

    def compile_towers(self) -> None:
        """Runs the large modules through torch.compile from now on."""
        raise UserError(f"{type(self).__name__} can't be compiled; leave rollout.compile off")

    def adapter_groups(self) -> dict[str, list[str]]:
        """Groups of modules for adapters, such as `head` -> names or patterns of modules, all below included.

        The usual groups are `language`, `vision`, `projector` and `head`.
        """
        raise UserError(f"{type(self).__name__} names no groups of modules, so it can't get adapters")

    def imitation_noise(self, samples: int) -> dict[str, Tensor]:
        """Random numbers of the loss of so many demonstrated decisions, a row for each; none if the loss has none.

        They are drawn from torch's generator for a whole batch and given to `imitation_loss` by name, so that a
        micro-batch, or another process, gets those of its own rows.
        """
        return {}

    @abstractmethod
    def imitation_loss(self, batch: ObservationBatch, actions: Tensor, mask: Tensor) -> Tensor:
        """Mean loss against demonstrated `actions` float32 [B, H, A] in the environment's units; `mask` bool [B, H].

        A policy that has `imitation_noise` takes it as further arguments, and draws it where it isn't given.
        """

    def save(self, folder: Path) -> None:
        """Writes the policy into `folder`, with its adapters if it has any; `load_policy` reads it."""
        if self.adapter_bank is None:
            self.save_alone(folder)
        else:
            self.adapter_bank.save(folder)

    @abstractmethod
    def save_alone(self, folder: Path) -> None:
        """Writes `model.safetensors`, `config.json`, `statistics.json` (and tokenizer files) into `folder`."""

    @classmethod
    def load(cls, folder: Path) -> "Policy":
        """The policy that `save_alone` wrote.

        Raises:
            UserError: a damaged or unfitting file, naming the file and the first tensors that differ.
        """
        raise UserError(f"{cls.__name__} can't be loaded from a folder")

    @classmethod
    def load_unfilled(cls, folder: Path) -> "Policy":
        """The policy in `folder` without its weights, which aren't read: on the meta device, to plan with."""
        raise UserError(f"{cls.__name__} can't be planned for")

    @classmethod
    def create(
        cls,
        preset: str,
        *,
        cameras: Sequence[str],
        state_dim: int,
        action_dim: int,
        chunk_length: int,
        instructions: Iterable[str],
        statistics: Statistics,
        head: Head | None = None,
        seed: int = 0,
    ) -> "Policy":
        """A randomly initialised policy of the size `preset`; the same arguments give the same weights."""
        raise UserError(f"{cls.__name__} has no presets; import a published checkpoint: simplevla import")
