"""SmolVLA: pictures, instruction and state in, a chunk of actions out, along the expert's velocity from noise."""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import init_empty_weights
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from simplevla.config import Head, TrainConfig, to_dict
from simplevla.errors import UserError
from simplevla.policies.base import ActionSample, ObservationBatch, Policy, Sampling
from simplevla.policies.files import check_token_ids, load_files, read_tokenizer, save_files
from simplevla.policies.flow import UNUSED_BY_FLOW, FlowHead
from simplevla.policies.heads import freeze_backbone
from simplevla.policies.normalization import Statistics
from simplevla.policies.smolvla.config import ARCHITECTURE, PRESETS, SmolVLAConfig
from simplevla.policies.smolvla.layers import (
    Read,
    expert_layer,
    make_expert,
    make_language,
    make_vision,
    rotary,
    time_embedding,
)
from simplevla.policies.smolvla.pixels import prepare_pixels
from simplevla.policies.smolvla.prompt import END, START, PromptTokens
from simplevla.policies.towers import checkpoint_towers
from simplevla.policies.words import train_tokenizer
from simplevla.storage import read_as

EPSILON = 1e-8
"""Added to a standard deviation, as published."""
BACKBONE_PARTS = ("vision.", "connector.", "language.")
"""Beginnings of the names of what pictures and words pass."""
SMALLEST_STD = 1e-3
"""A new policy's statistics have no smaller one, so that a dimension that hardly moves isn't blown up."""


class Context(NamedTuple):
    """Tokens that the backbone read for D decisions, computed once for all steps of the sampler."""

    reads: tuple[Read, ...]
    """Keys and values of each of the backbone's layers."""
    valid: Tensor
    """bool [D, L], false for padding."""

    def take(self, index: Tensor) -> "Context":
        """The context of these rows."""
        return Context(tuple(Read(*(x[index] for x in read)) for read in self.reads), self.valid[index])

    def per_decision(self, batch: ObservationBatch) -> "Context":
        """The context of each decision, from one per observation."""
        return self if batch.index is None else self.take(batch.index)


class SmolVLA(Policy):
    """A prefix of pictures, instruction and state passes through the backbone; the expert's actions attend to it.

    Pictures and words see one another, the state sees them and itself, an action sees all of these and the actions up
    to its own. So the prefix doesn't depend on the actions, and neither do pictures and words on the state. Layers of
    the expert take turns: some attend to the backbone's keys and to the actions at once, the others to the backbone
    alone, by keys and values that are made of the backbone's (arXiv 2506.01844; LeRobot's code).
    """

    presets = tuple(PRESETS)
    action_bounds = None
    not_decayed = ("embed_tokens.weight", "position_embedding.weight", "spread")
    shares_observations = True
    unused_settings = UNUSED_BY_FLOW
    state_mean: Tensor
    state_std: Tensor
    action_mean: Tensor
    action_std: Tensor

    def __init__(self, config: SmolVLAConfig, statistics: Statistics, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.statistics = statistics
        self.cameras = config.cameras
        self.state_dim = config.state_dim
        self.chunk_length = config.chunk_length
        self.action_dim = config.action_dim
        check_token_ids(tokenizer, config.language.vocab_size)
        self.prompts = PromptTokens(tokenizer, config.max_instruction_tokens)
        self.around = (START, END) if config.image_special_tokens else ((), ())
        for tokens in self.around:
            self.prompts.special(tokens)
        width, own = config.language.hidden_size, config.expert_hidden_size
        self.vision, self.connector = make_vision(config)
        self.language = make_language(config.language)
        self.expert = make_expert(config)
        self.state_proj = nn.Linear(config.max_state_dim, width)
        self.action_in_proj = nn.Linear(config.max_action_dim, own)
        self.action_out_proj = nn.Linear(own, config.max_action_dim)
        self.action_time_mlp_in = nn.Linear(2 * own, own)
        self.action_time_mlp_out = nn.Linear(own, own)
        shape = (config.predicted_length, config.max_action_dim)
        self.head = FlowHead(config.steps, shape, config.chunk_length, config.action_dim)
        for name, measures, expected in (
            ("state", statistics.state, config.state_dim),
            ("action", statistics.action, config.action_dim),
        ):
            if len(measures["mean"]) != expected:
                raise UserError(f"statistics have {len(measures['mean'])} {name} dimensions; the policy has {expected}")
            for measure in ("mean", "std"):
                self.register_buffer(f"{name}_{measure}", torch.tensor(measures[measure]).float(), persistent=False)
        self._freeze()
        self.eval()

    def _freeze(self) -> None:
        """Leaves out of training what is frozen by the config, and what no action depends on."""
        for part in (self.vision, self.connector, self.language):
            part.requires_grad_(not self.config.frozen_backbone)
        self.language.norm.requires_grad_(False)
        for part in self._unread():
            part.requires_grad_(False)

    def _unread(self) -> list[nn.Module]:
        """Modules of the backbone that compute nothing: of the last layer that the expert looks at it reads keys and
        values alone, and no later one."""
        last, *later = self.language.layers[self.config.read_layers - 1 :]
        return [last.self_attn.q_proj, last.self_attn.o_proj, last.mlp, last.post_attention_layernorm, *later]

    @classmethod
    def unfilled(cls, config: SmolVLAConfig, statistics: Statistics, tokenizer: Tokenizer) -> "SmolVLA":
        """A policy whose weights are yet to be assigned."""
        with init_empty_weights():
            return cls(config, statistics, tokenizer)

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
    ) -> "SmolVLA":
        """A randomly initialised policy of the size `preset`, which always has a flow head.

        The same arguments give the same weights. It executes all that it predicts. A warning says that a backbone is
        frozen as it is: random.

        Raises:
            UserError: another head is asked for.
        """
        if head not in (None, "flow"):
            raise UserError(f"head is {head!r}; {preset} always has a flow head: leave it out")
        sizes: dict[str, Any] = PRESETS[preset]()
        config = SmolVLAConfig(
            cameras=tuple(cameras),
            features=tuple(f"observation.images.{camera}" for camera in cameras),
            state_dim=state_dim,
            action_dim=action_dim,
            chunk_length=chunk_length,
            predicted_length=chunk_length,
            **sizes,
        )
        if config.frozen_backbone:
            warnings.warn(
                f"the backbone of a new {preset} is random, and frozen as the published one is: it learns nothing from pictures. "
                "Import LeRobot's policy and give its folder instead",
                stacklevel=2,
            )
        tokenizer = train_tokenizer(instructions, config.language.vocab_size)
        if not config.backbone:
            rows = tokenizer.get_vocab_size()
            config = replace(config, language=replace(config.language, vocab_size=rows))
        state, action = (
            {**measures, "std": [max(std, SMALLEST_STD) for std in measures["std"]]}
            for measures in (statistics.state, statistics.action)
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config, Statistics(state=state, action=action), tokenizer)

    @property
    def unit_action_index(self) -> np.ndarray:
        return self.head.unit_action_index

    @property
    def units(self) -> int:  # type: ignore[override]
        return len(self.unit_action_index)

    @property
    def imitated_length(self) -> int:
        return self.config.predicted_length

    @property
    def device(self) -> torch.device:
        return self.state_mean.device

    def prepare_for_rl(self, config: TrainConfig) -> None:
        """Prepares for RL as in the base class.

        With `denoising.frozen_backbone` the backbone doesn't train, and a trace ends with what it read of pictures and
        words.

        Raises:
            UserError: then, where nothing else trains.
        """
        super().prepare_for_rl(config)
        self.head.set_denoising(config.denoising, learned=self.adapter_bank is None)
        self.scores_from_trace = config.denoising.frozen_backbone
        if config.denoising.frozen_backbone:
            freeze_backbone(self, lambda name: name.startswith(BACKBONE_PARTS))

    @property
    def _backbone_trains(self) -> bool:
        return any(p.requires_grad and name.startswith(BACKBONE_PARTS) for name, p in self.named_parameters())

    def checkpoint_activations(self) -> None:
        checkpoint_towers(self)

    def adapter_groups(self) -> dict[str, list[str]]:
        last = self.config.read_layers - 1
        layers = [f"language.layers.{number}" for number in range(last)]
        return {
            "language": [*layers, *(f"language.layers.{last}.self_attn.{name}_proj" for name in "kv")],
            "sublayers": [f"{layer}.{name}" for layer in layers for name in ("self_attn.o_proj", "mlp.down_proj")],
            "vision": ["vision"],
            "projector": ["connector", "state_proj"],
            "head": ["expert", "action_in_proj", "action_out_proj", "action_time_mlp_in", "action_time_mlp_out"],
        }

    def forward(self, batch: ObservationBatch) -> Context:
        """All that the expert sees of B observations."""
        return self._with_state(self._seen(batch), batch.state)

    def _seen(self, batch: ObservationBatch) -> Context:
        """Pictures and words, which don't see the state."""
        self.check_observations(batch)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._backbone_trains):
            tokens, valid = self._pictures_and_words(batch)
            return Context(self._read(tokens, valid.cumsum(dim=1) - 1, valid), valid)

    def _with_state(self, seen: Context, state: Tensor) -> Context:
        """The context of pictures and words with the state, whose projection trains."""
        state = (state - self.state_mean) / (self.state_std + EPSILON)
        state = self.state_proj(F.pad(state, (0, self.config.max_state_dim - self.state_dim)))[:, None]
        valid = F.pad(seen.valid, (0, 1), value=True)
        return Context(self._read(state, valid.sum(dim=1, keepdim=True) - 1, valid, seen.reads), valid)

    def _read(
        self, tokens: Tensor, positions: Tensor, valid: Tensor, before: tuple[Read, ...] | None = None
    ) -> tuple[Read, ...]:
        """Keys and values of tokens in each layer of the backbone that counts, after those before; they see all valid
        ones."""
        turned, reads = rotary(positions, self.config.language.head_dim), []
        for number, layer in enumerate(self.language.layers[: self.config.read_layers]):
            last = number == self.config.read_layers - 1
            earlier = before[number] if before else None
            tokens, read = layer(tokens, turned, valid[:, None, None], earlier, False, last)
            reads.append(read)
        return tuple(reads)

    def _pictures_and_words(self, batch: ObservationBatch) -> tuple[Tensor, Tensor]:
        """(embeddings [B, L, width], valid bool [B, L])."""
        rows, embed = len(batch), self.language.embed_tokens
        scale = math.sqrt(self.config.language.hidden_size)
        pixels = [prepare_pixels(batch.images[camera], self.config.image_size) for camera in self.cameras]
        seen = self.connector(self.vision(pixel_values=torch.cat(pixels)).last_hidden_state) * scale
        start, end = (
            embed(torch.tensor(self.prompts.special(x), dtype=torch.int64, device=self.device)).expand(rows, -1, -1)
            for x in self.around
        )
        parts = [part for view in seen.chunk(len(pixels)) for part in (start, view, end)]
        # The tokens of a picture that isn't there are masked, so that only those around it count.
        parts += [start, end] * self.config.empty_cameras
        ids, valid = (x.to(self.device) for x in self.prompts.batch(batch.instructions))
        before = sum(part.shape[1] for part in parts)
        return torch.cat([*parts, embed(ids) * scale], dim=1), F.pad(valid, (before, 0), value=True)

    def velocity(self, context: Context, noisy: Tensor, times: Tensor) -> Tensor:
        """The predicted velocity of x_t.

        Args:
            context: of D decisions.
            noisy: x_t, float32 [D, H, A], of the predicted length and with the padding of the dimensions.
            times: t, float32 [D].
        """
        hidden, config = self.action_in_proj(noisy), self.config
        time = time_embedding(times, hidden.shape[2], config.min_period, config.max_period).to(hidden.dtype)
        hidden = torch.cat([hidden, time[:, None].expand_as(hidden)], dim=2)
        hidden = self.action_time_mlp_out(F.silu(self.action_time_mlp_in(hidden)))
        length, valid = noisy.shape[1], context.valid[:, None, None]
        order = torch.arange(length, device=noisy.device)
        earlier = (order <= order[:, None]).expand(len(noisy), 1, -1, -1)
        joint = torch.cat([valid.expand(-1, -1, length, -1), earlier], dim=3)
        apart = rotary(order[None], config.language.head_dim)
        after = rotary(context.valid.sum(dim=1, keepdim=True) + order, config.language.head_dim)
        for number, read in enumerate(context.reads):
            place = expert_layer(config, number)
            if place is not None:
                crosses = config.crosses(number)
                turned, mask = (apart, valid) if crosses else (after, joint)
                hidden = self.expert.layers[place](hidden, turned, mask, read, crosses)[0]
        return self.action_out_proj(self.expert.norm(hidden).float())

    def act(
        self, batch: ObservationBatch, sampling: Sampling, generators: Sequence[np.random.Generator]
    ) -> ActionSample:
        with torch.inference_mode():
            batch = batch.to(self.device)
            seen = self._seen(batch)
            context = self._with_state(seen, batch.state).per_decision(batch)
            sample = self.head.sample(partial(self.velocity, context), sampling, generators)
            actions = sample.normalised * self.action_std + self.action_mean
            trace = sample.trace
            if self.scores_from_trace:
                trace = torch.cat([trace, batch.per_decision(self._kept(seen))], dim=1)
        # Tensors made in inference mode can't take part in a later backward pass; their copies can.
        return ActionSample(actions=actions.cpu().numpy(), logprobs=sample.logprobs.clone(), trace=trace.clone())

    def score(self, batch: ObservationBatch, trace: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
        batch, trace = batch.to(self.device), trace.to(self.device)
        if self.scores_from_trace:
            trace, kept = trace.split([trace.shape[1] - self._kept_numbers, self._kept_numbers], dim=1)
            seen = self._from_kept(kept, [batch.instructions[row] for row in batch.observed()])
            context = self._with_state(seen, batch.per_decision(batch.state))
        else:
            context = self(batch).per_decision(batch)
        return self.head.score(partial(self.velocity, context), trace, sampling)

    @property
    def _kept_shape(self) -> tuple[int, ...]:
        """Shape of what a trace keeps of a decision: [layers, keys and values, heads, tokens, d]."""
        sizes = self.config.language
        tokens = self._picture_tokens + self.config.max_instruction_tokens
        return self.config.read_layers, 2, sizes.key_value_heads, tokens, sizes.head_dim

    @property
    def _kept_numbers(self) -> int:
        return math.prod(self._kept_shape)

    @property
    def _picture_tokens(self) -> int:
        """Tokens before an instruction's."""
        config, around = self.config, sum(len(tokens) for tokens in self.around)
        side = config.image_size // (config.vision.patch_size * config.vision.scale_factor)
        return len(self.cameras) * (side**2 + around) + config.empty_cameras * around

    def _kept(self, seen: Context) -> Tensor:
        """Keys and values of pictures and words, flat, float32 [D, N]; what is shorter than allowed ends with zeros."""
        reads = torch.stack([torch.stack([x.float() for x in read], dim=1) for read in seen.reads], dim=1)
        return F.pad(reads, (0, 0, 0, self._kept_shape[3] - reads.shape[4])).flatten(1)

    def _from_kept(self, kept: Tensor, instructions: list[str]) -> Context:
        """Pictures and words of which `kept` was made."""
        _, words = self.prompts.batch(instructions)
        valid = F.pad(words.to(self.device), (self._picture_tokens, 0), value=True)
        reads = kept.unflatten(1, self._kept_shape)[..., : valid.shape[1], :]
        return Context(tuple(Read(*layer.unbind(1)) for layer in reads.unbind(1)), valid)

    def imitation_noise(self, samples: int) -> dict[str, Tensor]:
        return self.head.loss_noise(samples, self.config.noise_samples)

    def imitation_loss(self, batch: ObservationBatch, actions: Tensor, mask: Tensor, **noise: Tensor) -> Tensor:
        """Mean squared error of the velocity over real dimensions and the steps before the demonstration's end.

        Args:
            actions: float32 [B, predicted_length, A] in the environment's units.
            mask: bool [B, predicted_length].
            noise: as `imitation_noise` draws it.
        """
        noise = noise or self.imitation_noise(len(actions))
        normalised = (actions.to(self.device) - self.action_mean) / (self.action_std + EPSILON)
        context = self(batch.to(self.device))
        draws = noise["times"].shape[1]
        if draws > 1:
            context = context.take(torch.arange(len(actions), device=self.device).repeat_interleave(draws))
        return self.head.loss(partial(self.velocity, context), normalised, mask.to(self.device), **noise)

    def empty_trace(self, rows: int) -> Tensor:
        return self.head.empty_trace(rows, self._kept_numbers if self.scores_from_trace else 0)

    def save_alone(self, folder: Path) -> None:
        config, tensors = to_dict(self.config), self.state_dict()
        save_files(folder, ARCHITECTURE, config, self.statistics, self.prompts.tokenizer, tensors, self.trained_on)

    @classmethod
    def load_unfilled(cls, folder: Path) -> "SmolVLA":
        statistics, tokenizer = Statistics.load(folder / "statistics.json"), read_tokenizer(folder / "tokenizer.json")
        return cls.unfilled(read_as(folder / "config.json", SmolVLAConfig), statistics, tokenizer)

    @classmethod
    def load(cls, folder: Path) -> "SmolVLA":
        files = load_files(folder)
        policy = cls.unfilled(read_as(folder / "config.json", SmolVLAConfig), files.statistics, files.tokenizer)
        files.fill(policy)
        policy._freeze()
        policy.trained_on = files.trained_on
        return policy
