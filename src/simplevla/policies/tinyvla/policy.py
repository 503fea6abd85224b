"""TinyVLA: views, instruction and state in, a chunk of actions out, by a token, diffusion or flow head."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from simplevla.config import Head, TrainConfig, to_dict
from simplevla.errors import UserError
from simplevla.policies.base import ActionSample, ObservationBatch, Policy, Sampling
from simplevla.policies.files import PolicyFiles, check_token_ids, load_files, read_tokenizer, save_files
from simplevla.policies.flow import UNUSED_BY_FLOW
from simplevla.policies.heads import freeze_backbone
from simplevla.policies.linear import ROWS, through_onednn
from simplevla.policies.normalization import Statistics
from simplevla.policies.tinyvla.config import ARCHITECTURE, FlowConfig, TinyVLAConfig
from simplevla.policies.tinyvla.diffusion import DiffusionHead
from simplevla.policies.tinyvla.flow import UnetFlow
from simplevla.policies.tinyvla.head import TokenHead
from simplevla.policies.tinyvla.language import make_language
from simplevla.policies.tinyvla.pooled import PooledCondition, masked_mean
from simplevla.policies.tinyvla.presets import PRESETS, PYTHIA_VOCABULARY, make_preset
from simplevla.policies.tinyvla.prompted import read_prompt
from simplevla.policies.tinyvla.tokens import InstructionTokens
from simplevla.policies.tinyvla.vision import make_vision, projector
from simplevla.policies.towers import MASKED, checkpoint_towers, compile_modules
from simplevla.policies.words import train_tokenizer
from simplevla.storage import read_as

SMALLEST_STD = 1e-3
"""A state dimension that hardly moves in the demonstrations isn't blown up by its tiny std."""


LARGEST_STATE = 10.0
"""Largest normalised state, standard deviations. A state far from all demonstrations must not drown the images."""

LARGEST_ACTION = 1 + 1e-3
"""Normalised. Demonstrated actions beyond become the outermost; the rest is for rounding."""


class TinyVLA(Policy):
    """Vision tokens, instruction and state pass through one GPT-NeoX language model.

    For a token head H * A learned queries pass through it as well: they see everything and one another, in both
    directions, and the prefix (vision, instruction, state) sees the prefix only; a query's output gives the logits of
    its unit's bins. For the other heads the outputs are averaged over the valid tokens and condition a U-Net.
    A token head doesn't read the averaged vector, on which TinyVLA's ablation found other heads to work badly (arXiv
    2409.12514). With a prompt (`config.language.prompt`) everything is as in TinyVLA's own code: the views' tokens
    stand inside the prompt, attention is causal, and the state isn't a token.
    """

    presets = tuple(PRESETS)
    not_decayed = (
        "embed_in.weight",
        "position_embedding.weight",
        "queries",
        "order",
        "unit_bias",
        "sharpness",
        "spread",
    )
    shares_observations = True
    state_mean: Tensor
    state_scale: Tensor
    action_centre: Tensor
    action_half_range: Tensor

    def __init__(self, config: TinyVLAConfig, statistics: Statistics, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.statistics = statistics
        self.cameras = config.cameras
        self.state_dim = config.state_dim
        self.chunk_length = config.chunk_length
        self.action_dim = config.action_dim
        check_token_ids(tokenizer, config.language.vocab_size)
        self.instruction_tokens = InstructionTokens(
            tokenizer, config.language.max_instruction_tokens, config.language.prompt
        )
        width = config.language.hidden_size
        units = config.chunk_length * config.action_dim
        self.language = make_language(config.language, read=units if config.head == "tokens" else None)
        if config.vision.kind == "conv":
            places = config.language.max_instruction_tokens
            self.order = nn.Parameter(torch.randn(places, width) * config.language.init_std)
            self.read = nn.Sequential(nn.Linear(width, width), nn.GELU())
            self.read_norm = nn.LayerNorm(width)
            if config.vision.summary:
                self.summary = projector((len(config.cameras) * config.vision.tokens + 2) * width, width, width)
        self.vision = make_vision(config.vision, len(config.cameras), width)
        if not config.language.prompt:
            self.state = nn.Linear(config.state_dim, width)
        self.head: TokenHead | DiffusionHead | UnetFlow
        if config.head == "tokens":
            self.queries = nn.Parameter(torch.randn(units, width) * config.language.init_std)
            self.head = TokenHead(width, self.chunk_length, self.action_dim, config.bins)
        else:
            self.condition = PooledCondition(width, self.state_dim)
            if config.head == "diffusion":
                self.unused_settings = {
                    "sampling.temperature": "the policy has a diffusion head; it has eta and sigma_min",
                    **dict.fromkeys(("sampling.alpha", "denoising.flow"), "the policy has no flow head"),
                }
                self.head = DiffusionHead(config.diffusion, width, self.chunk_length, self.action_dim)
            else:
                self.unused_settings = UNUSED_BY_FLOW
                self.head = UnetFlow(config.flow, width, self.chunk_length, self.action_dim)
        self._set_statistics(statistics)
        through_onednn(self)
        self.eval()

    def _set_statistics(self, statistics: Statistics) -> None:
        for name, values, expected in (
            ("state", statistics.state["mean"], self.config.state_dim),
            ("action", statistics.action["min"], self.config.action_dim),
        ):
            if len(values) != expected:
                raise UserError(f"statistics have {len(values)} {name} dimensions; the policy has {expected}")
        low, high = (torch.tensor(statistics.action[key], dtype=torch.float64) for key in ("min", "max"))
        buffers = {
            "state_mean": torch.tensor(statistics.state["mean"]),
            "state_scale": 1 / torch.tensor(statistics.state["std"]).clamp(min=SMALLEST_STD),
            "action_centre": (low + high) / 2,
            "action_half_range": ((high - low) / 2).clamp(min=1e-6),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value.float(), persistent=False)

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
    ) -> "TinyVLA":
        """A randomly initialised policy of the size `preset`; the same arguments give the same weights."""
        vision, language, diffusion = make_preset(preset)
        tokenizer = train_tokenizer(instructions, language.vocab_size)
        # The published sizes keep Pythia's rows, whatever the instructions need.
        rows = PYTHIA_VOCABULARY if language.vocab_size == PYTHIA_VOCABULARY else tokenizer.get_vocab_size()
        config = TinyVLAConfig(
            cameras=tuple(cameras),
            state_dim=state_dim,
            action_dim=action_dim,
            chunk_length=chunk_length,
            head=head or "tokens",
            diffusion=diffusion,
            flow=FlowConfig(steps=diffusion.steps, noise_samples=diffusion.noise_samples, unet=diffusion.unet),
            vision=vision,
            language=replace(language, vocab_size=rows),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(config, statistics, tokenizer)

    @property
    def unit_action_index(self) -> np.ndarray:
        return self.head.unit_action_index

    @property
    def units(self) -> int:  # type: ignore[override]
        return len(self.unit_action_index)

    @property
    def device(self) -> torch.device:
        return self.state_mean.device

    @property
    def unit_discount(self) -> np.ndarray:
        return self.head.unit_discount

    @property
    def unit_clip_scale(self) -> np.ndarray:
        return self.head.unit_clip_scale

    def prepare_for_rl(self, config: TrainConfig) -> None:
        """Prepares for RL as in the base class.

        With a frozen backbone a trace ends with the condition, and only the head trains.

        Raises:
            UserError: a frozen backbone for a token head or where only the backbone trains, or too many steps.
        """
        super().prepare_for_rl(config)
        denoising = config.denoising
        if isinstance(self.head, UnetFlow):
            self.head.set_denoising(denoising, learned=self.adapter_bank is None)
        else:
            self.head.set_denoising(denoising)
        self.scores_from_trace = denoising.frozen_backbone
        if denoising.frozen_backbone:
            freeze_backbone(self, lambda name: not name.startswith("head."))

    def checkpoint_activations(self) -> None:
        checkpoint_towers(self)

    def compile_towers(self) -> None:
        compile_modules([self.language, self.vision], self.device)

    def adapter_groups(self) -> dict[str, list[str]]:
        return {
            "language": ["language"],
            "sublayers": ["language.layers.*.attention.dense", "language.layers.*.mlp.dense_4h_to_h"],
            "vision": ["vision.encoders", "vision.tower", "read"],
            "projector": ["vision.projectors", "vision.project", "summary", "state", "condition"],
            "head": ["head"],
        }

    def forward(self, batch: ObservationBatch) -> Tensor:
        """Outputs for the head: logits [B, U, bins] of a token head, else the condition [B, width]."""
        self.check_observations(batch)
        distinct = {instruction: i for i, instruction in enumerate(dict.fromkeys(batch.instructions))}
        index = torch.tensor([distinct[instruction] for instruction in batch.instructions], device=self.device)
        ids, valid = (x.to(self.device) for x in self.instruction_tokens.batch(list(distinct)))
        words = self.language.embed_in(ids)
        images = [batch.images[camera] for camera in self.config.cameras]
        normalised = ((batch.state - self.state_mean) * self.state_scale).clamp(-LARGEST_STATE, LARGEST_STATE)
        if self.config.language.prompt:
            before = torch.tensor(self.instruction_tokens.before, dtype=torch.int64, device=self.device)
            views, before = self.vision(images), self.language.embed_in(before)
            outputs, read = read_prompt(self.language, before, views, words[index], valid[index])
            return self.condition(masked_mean(outputs, read), normalised)
        state = self.state(normalised)[:, None]
        summary = None
        if self.config.vision.kind == "conv":
            instruction = self._read_instruction(words, valid)
            views = self.vision(images, instruction, index)
            if self.config.vision.summary:
                summary = self.summary(torch.cat([views.flatten(1), state[:, 0], instruction[index]], dim=1))
        else:
            views = self.vision(images)
        inputs = [views, state, words[index]]
        if self.config.head == "tokens":
            queries = self.queries.expand(len(batch), -1, -1)
            inputs.append(queries if summary is None else queries + summary[:, None])
        positions, mask = self._layout(views.shape[1], valid)
        outputs = self.language(
            inputs_embeds=torch.cat(inputs, dim=1),
            attention_mask=mask[index] if len(mask) > 1 else mask.expand(len(batch), -1, -1, -1),
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
        if self.config.head == "tokens":
            return self.head(outputs)
        seen = torch.cat([valid.new_ones(len(valid), views.shape[1] + 1), valid], dim=1)
        condition = self.condition(masked_mean(outputs, seen[index]), normalised)
        return condition if summary is None else condition + summary

    def _read_instruction(self, words: Tensor, valid: Tensor) -> Tensor:
        """One vector [D, width] per distinct instruction, for the vision; word order counts ("red on blue")."""
        weights = valid.float() / valid.sum(dim=1, keepdim=True)
        read = self.read(words + self.order[: words.shape[1]])
        return self.read_norm((read * weights[..., None]).sum(dim=1))

    def _layout(self, view_tokens: int, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [1, L] and additive attention mask [D, 1, L, L] for D distinct instructions.

        Only a token head has queries. The queries' positions start after the longest allowed instruction, so that
        padding doesn't move them.
        """
        before = view_tokens + 1
        prefix = before + valid.shape[1]
        length = prefix + (len(self.queries) if self.config.head == "tokens" else 0)
        first_query = before + self.config.language.max_instruction_tokens
        positions = torch.arange(length, device=valid.device)
        positions[prefix:] += first_query - prefix
        if bool(valid.all()):
            valid = valid[:1]
        seen = torch.ones(len(valid), 1, length, length, dtype=torch.bool, device=valid.device)
        seen[:, 0, :, before:prefix] = valid[:, None]
        seen[:, :, :prefix, prefix:] = False
        mask = torch.zeros(seen.shape, device=valid.device).masked_fill_(~seen, MASKED)
        return positions[None], mask

    def act(
        self, batch: ObservationBatch, sampling: Sampling, generators: Sequence[np.random.Generator]
    ) -> ActionSample:
        with torch.inference_mode():
            output = self._output(batch)
            sample = self.head.sample(self._for_head(output), sampling, generators)
            actions = self.in_environment_units(sample.normalised)
            trace = torch.cat([sample.trace, output], dim=1) if self.scores_from_trace else sample.trace
        # Tensors made in inference mode can't take part in a later backward pass; their copies can.
        return ActionSample(actions=actions.cpu().numpy(), logprobs=sample.logprobs.clone(), trace=trace.clone())

    def _output(self, batch: ObservationBatch) -> Tensor:
        """Outputs for the head, one row per decision."""
        batch = batch.to(self.device)
        # A few observations stay a few: a large policy's time is all in its rows.
        outputs = self(batch.filled(ROWS) if self.device.type == "cpu" and len(batch) > ROWS else batch)
        return batch.per_decision(outputs[: len(batch)])

    def in_environment_units(self, normalised: Tensor) -> Tensor:
        """Actions [..., A] from normalised ones in [-1, 1]."""
        return normalised * self.action_half_range + self.action_centre

    def score(self, batch: ObservationBatch, trace: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
        trace = trace.to(self.device)
        if self.scores_from_trace:
            trace, output = trace[:, : -self.config.language.hidden_size], trace[:, -self.config.language.hidden_size :]
        else:
            output = self._output(batch)
        return self.head.score(self._for_head(output), trace, sampling)

    def _for_head(self, output: Tensor) -> Any:
        """Logits of a token head, condition of a diffusion head, velocity of a flow head."""
        return self.head.given(output) if isinstance(self.head, UnetFlow) else output

    def imitation_noise(self, samples: int) -> dict[str, Tensor]:
        return self.head.loss_noise(samples)

    def imitation_loss(self, batch: ObservationBatch, actions: Tensor, mask: Tensor, **noise: Tensor) -> Tensor:
        """The head's loss: nats per unit of a token head, else the squared error of noise or velocity.

        Args:
            actions: float32 [B, H, A] in the environment's units.
            mask: bool [B, H], false after the end of the demonstration.
            noise: as `imitation_noise` draws it.
        """
        normalised = (actions.to(self.device) - self.action_centre) / self.action_half_range
        normalised = normalised.clamp(-LARGEST_ACTION, LARGEST_ACTION)
        noise = noise or self.imitation_noise(len(actions))
        output = self._for_head(self(batch.to(self.device)))
        return self.head.loss(output, normalised, mask.to(self.device), **noise)

    def save_alone(self, folder: Path) -> None:
        save_files(
            folder,
            ARCHITECTURE,
            to_dict(self.config),
            self.statistics,
            self.instruction_tokens.tokenizer,
            self.state_dict(),
            self.trained_on,
        )

    def empty_trace(self, rows: int) -> Tensor:
        return self.head.empty_trace(rows, self.config.language.hidden_size if self.scores_from_trace else 0)

    @classmethod
    def load_unfilled(cls, folder: Path) -> "TinyVLA":
        statistics, tokenizer = Statistics.load(folder / "statistics.json"), read_tokenizer(folder / "tokenizer.json")
        with torch.device("meta"):
            return cls(read_as(folder / "config.json", TinyVLAConfig), statistics, tokenizer)

    @classmethod
    def load(cls, folder: Path) -> "TinyVLA":
        files = load_files(folder)
        _require_named_sampler(files)
        with torch.random.fork_rng(devices=[]):
            config = read_as(folder / "config.json", TinyVLAConfig)
            with torch.device("meta"):
                # Without numbers first: sizes that the tensors don't have could be larger than the memory.
                files.check_tensors(cls(config, files.statistics, files.tokenizer).state_dict())
            policy = cls(config, files.statistics, files.tokenizer)
        policy.load_state_dict(files.tensors)
        policy.trained_on = files.trained_on
        return policy


def _require_named_sampler(files: PolicyFiles) -> None:
    """Refuses a diffusion policy that doesn't say which of two samplers it was trained and evaluated with."""
    diffusion = files.config.get("diffusion")
    if files.config.get("head") == "diffusion" and not (
        isinstance(diffusion, dict) and "use_clipped_model_output" in diffusion
    ):
        raise UserError(
            f"{files.folder / 'config.json'} has no diffusion.use_clipped_model_output: it was saved when every step recomputed epsilon "
            "from the clipped estimate. Add it there: true for a policy that was trained here with that sampler, false for one that "
            "was imported, which then acts as published."
        )
