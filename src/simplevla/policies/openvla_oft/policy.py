"""OpenVLA-OFT with its token head: the policy of SimpleVLA-RL's paper (arXiv 2509.09674).

The model is that of arXiv 2502.19645; docs/openvla_oft.md gives its numbers."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from accelerate import init_empty_weights
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from simplevla.config import to_dict
from simplevla.errors import UserError
from simplevla.policies.base import ActionSample, ObservationBatch, Policy, Sampling
from simplevla.policies.categorical import sample_tokens, score_tokens
from simplevla.policies.files import check_token_ids, load_files, read_tokenizer, save_files
from simplevla.policies.normalization import Statistics
from simplevla.policies.openvla_oft.actions import BINS, Actions, Bounds
from simplevla.policies.openvla_oft.config import ARCHITECTURE, LlamaSizes, OpenVLAOFTConfig
from simplevla.policies.openvla_oft.prompt import BEGIN, STOP, PromptTokens
from simplevla.policies.openvla_oft.vision import FusedVision, Projector, ProprioProjector
from simplevla.policies.towers import MASKED, checkpoint_towers, compile_modules
from simplevla.storage import read_as


class OpenVLAOFT(Policy):
    """One pass of a Llama that attends in both directions gives all H * A tokens of a chunk.

    The sequence is <s>, the views' patches, the state (if it is read), the prompt, U = H * A placeholders of zeros,
    </s>. As in any language model the output at one position belongs to the next: unit u is read at the position before
    placeholder u, so the first one at the prompt's last token. Unit `u = h * A + a` is dimension `a` of action `h`.
    """

    not_decayed = (
        "embed_tokens.weight",
        "position_embedding.weight",
        "position_embeddings",
        "cls_token",
        "register_tokens",
    )
    shares_observations = True

    def __init__(self, config: OpenVLAOFTConfig, statistics: Statistics, tokenizer: Tokenizer) -> None:
        super().__init__()
        _check_statistics(config, statistics)
        self.config = config
        self.statistics = statistics
        self.cameras = config.cameras
        self.state_dim = config.state_dim
        self.chunk_length = config.chunk_length
        self.action_dim = config.action_dim
        self.units = config.chunk_length * config.action_dim
        check_token_ids(tokenizer, config.language.vocab_size)
        self.prompts = PromptTokens(tokenizer)
        self.actions = Actions(config, statistics)
        self.action_bounds = ("q01", "q99") if config.bounds == "q01_q99" else ("min", "max")
        self.state_bounds = Bounds(statistics.state, config.bounds, [True] * config.state_dim)
        width = config.language.hidden_size
        self.vision = FusedVision(config)
        self.projector = Projector(self.vision.width, width)
        if config.proprio:
            self.proprio = ProprioProjector(config.state_dim, width)
        self.language = LlamaModel(llama_config(config.language))
        # Of the language model's head only the rows of the action tokens.
        self.head = nn.Linear(width, BINS, bias=False)
        for parameter in self.parameters():
            parameter.data = parameter.data.to(getattr(torch, config.dtype))
        self.eval()

    @classmethod
    def unfilled(cls, config: OpenVLAOFTConfig, statistics: Statistics, tokenizer: Tokenizer) -> "OpenVLAOFT":
        """A policy whose weights are yet to be assigned: seven billion random numbers would take minutes."""
        check_bidirectional()
        with init_empty_weights():
            return cls(config, statistics, tokenizer)

    @property
    def unit_action_index(self) -> np.ndarray:
        return np.repeat(np.arange(self.chunk_length), self.action_dim)

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def checkpoint_activations(self) -> None:
        checkpoint_towers(self)

    def compile_towers(self) -> None:
        compile_modules([self.language, self.vision.dino, self.vision.siglip], self.device)

    def adapter_groups(self) -> dict[str, list[str]]:
        return {
            "language": ["language"],
            "sublayers": ["language.layers.*.self_attn.o_proj", "language.layers.*.mlp.down_proj"],
            "vision": ["vision"],
            "projector": ["projector", "proprio"] if self.config.proprio else ["projector"],
            "head": ["head"],
        }

    def forward(self, batch: ObservationBatch) -> Tensor:
        """float32 logits [B, U, 256] of the action tokens."""
        self.check_observations(batch)
        distinct = {instruction: i for i, instruction in enumerate(dict.fromkeys(batch.instructions))}
        index = torch.tensor([distinct[instruction] for instruction in batch.instructions], device=self.device)
        ids, valid = (x.to(self.device) for x in self.prompts.batch(list(distinct)))
        before = [self.projector(self.vision([batch.images[camera] for camera in self.cameras]))]
        if self.config.proprio:
            before.append(self.proprio(self.state_bounds.normalise(batch.state).to(before[0].dtype)))
        seen = torch.cat(before, dim=1)
        embed, rows = self.language.embed_tokens, len(batch)
        ends = embed(torch.tensor([BEGIN, STOP], device=self.device))
        begin, stop = (end.expand(rows, 1, -1) for end in ends)
        placeholders = seen.new_zeros(rows, self.units, seen.shape[2])
        inputs = torch.cat([begin, seen, embed(ids)[index], placeholders, stop], dim=1)
        positions, mask = layout(1 + seen.shape[1], valid, self.units + 1)
        outputs = self.language(
            inputs_embeds=inputs,
            attention_mask=mask.to(inputs.dtype)[index if len(mask) > 1 else index.new_zeros(rows)],
            position_ids=positions[index if len(positions) > 1 else index.new_zeros(rows)],
            use_cache=False,
        ).last_hidden_state
        return self.head(outputs[:, -self.units - 2 : -2]).float()

    def act(
        self, batch: ObservationBatch, sampling: Sampling, generators: Sequence[np.random.Generator]
    ) -> ActionSample:
        with torch.inference_mode():
            tokens, logprobs = sample_tokens(self._logits(batch), sampling, generators)
            actions = self.actions.from_tokens(tokens.unflatten(1, (self.chunk_length, self.action_dim)))
        # Tensors made in inference mode can't take part in a later backward pass; their copies can.
        return ActionSample(actions=actions.cpu().numpy(), logprobs=logprobs.clone(), trace=tokens.clone())

    def score(self, batch: ObservationBatch, trace: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
        return score_tokens(self._logits(batch), trace.to(self.device), sampling)

    def _logits(self, batch: ObservationBatch) -> Tensor:
        """Logits of each decision, [D, U, 256]."""
        batch = batch.to(self.device)
        return batch.per_decision(self(batch))

    def imitation_loss(self, batch: ObservationBatch, actions: Tensor, mask: Tensor) -> Tensor:
        """Negative log-likelihood of the demonstrated tokens among the 256, in nats per unit of a valid action."""
        tokens = self.actions.tokens(actions.to(self.device)).flatten(1)
        logprobs, _ = score_tokens(self(batch.to(self.device)), tokens, Sampling())
        weights = mask.to(self.device).float().repeat_interleave(self.action_dim, dim=1)
        return -(logprobs * weights).sum() / weights.sum()

    def save_alone(self, folder: Path) -> None:
        config, tensors = to_dict(self.config), self.state_dict()
        save_files(folder, ARCHITECTURE, config, self.statistics, self.prompts.tokenizer, tensors, self.trained_on)

    @classmethod
    def load_unfilled(cls, folder: Path) -> "OpenVLAOFT":
        statistics, tokenizer = Statistics.load(folder / "statistics.json"), read_tokenizer(folder / "tokenizer.json")
        return cls.unfilled(read_as(folder / "config.json", OpenVLAOFTConfig), statistics, tokenizer)

    @classmethod
    def load(cls, folder: Path) -> "OpenVLAOFT":
        files = load_files(folder)
        policy = cls.unfilled(read_as(folder / "config.json", OpenVLAOFTConfig), files.statistics, files.tokenizer)
        files.fill(policy)
        policy.trained_on = files.trained_on
        return policy


def layout(before: int, valid: Tensor, after: int) -> tuple[Tensor, Tensor]:
    """Positions [D, L] and additive attention mask [D, 1, 1, L] of D prompts between `before` and `after` other tokens.

    Everything sees everything, padding aside, which also takes no position. One row stands for all if none is padded.
    """
    if bool(valid.all()):
        valid = valid[:1]
    ones = valid.new_ones(len(valid), 1)
    seen = torch.cat([ones.expand(-1, before), valid, ones.expand(-1, after)], dim=1)
    mask = torch.zeros(seen.shape, device=valid.device).masked_fill_(~seen, MASKED)
    return (seen.long().cumsum(dim=1) - 1).clamp(min=0), mask[:, None, None]


def llama_config(sizes: LlamaSizes) -> LlamaConfig:
    """transformers' configuration of the language model."""
    return LlamaConfig(
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.key_value_heads,
        intermediate_size=sizes.mlp_size,
        vocab_size=sizes.vocab_size,
        rms_norm_eps=sizes.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_theta},
        attn_implementation="sdpa",
    )


@cache
def check_bidirectional() -> None:
    """Checks that a Llama follows the mask that it is given.

    With a causal mask OpenVLA-OFT runs and acts badly (moojink/openvla-oft, issue 135).

    Raises:
        UserError: this version of transformers masks the future all the same.
    """
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(0)
        sizes = LlamaSizes(hidden_size=16, layers=1, heads=2, key_value_heads=2, mlp_size=16, vocab_size=8, padded=0)
        llama = LlamaModel(llama_config(sizes)).eval()
        first = torch.randn(1, 2, 16)
        changed = torch.cat([first[:, :1], torch.randn(1, 1, 16)], dim=1)
        mask = torch.zeros(1, 1, 2, 2)
        outputs = [
            llama(inputs_embeds=x, attention_mask=mask, use_cache=False).last_hidden_state[0, 0]
            for x in (first, changed)
        ]
    if torch.allclose(*outputs):
        import transformers

        raise UserError(
            f"transformers {transformers.__version__} gives Llama a causal mask where it is told not to; OpenVLA-OFT attends in both "
            "directions. Install the version that pyproject.toml names."
        )


def _check_statistics(config: OpenVLAOFTConfig, statistics: Statistics) -> None:
    for name, values, expected in (
        ("state", statistics.state["mean"], config.state_dim),
        ("action", statistics.action["min"], config.action_dim),
    ):
        if len(values) != expected:
            raise UserError(f"statistics have {len(values)} {name} dimensions; the policy has {expected}")
