"""`simplevla import tinyvla`: from the checkpoint that TinyVLA's training writes to a policy folder."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from simplevla.errors import UserError
from simplevla.policies.files import is_finite, read_tokenizer
from simplevla.policies.normalization import Statistics
from simplevla.policies.tinyvla import unet
from simplevla.policies.tinyvla.config import TinyVLAConfig
from simplevla.policies.tinyvla.policy import TinyVLA
from simplevla.policies.tinyvla.published_config import FRAME, policy_config
from simplevla.policies.tinyvla.published_files import PublishedCheckpoint, read_checkpoint
from simplevla.policies.tinyvla.published_pickle import read_pickle
from simplevla.policies.trained_on import TrainedOn
from simplevla.storage import atomic_folder

PARTS = (
    ("condition.norm.", "embed_out.norm_after_pool."),
    ("condition.combine.", "embed_out.combine."),
    ("vision.tower.", "gpt_neox.vision_tower.vision_model."),
    ("vision.project.", "gpt_neox.mm_projector."),
    ("language.", "gpt_neox."),
)
"""Our names' beginnings, and the published ones; the U-Net's names are in unet.py."""

BUFFERS = re.compile(
    r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)|gpt_neox\.rotary_emb\.inv_freq|"
    r"gpt_neox\.vision_tower\.vision_model\.embeddings\.position_ids"
)
"""Constants that some versions of transformers save among the weights."""


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """Report on an import."""

    config: TinyVLAConfig
    tensors: int
    """Tensors of the policy."""
    merged: int
    """Weights that an adapter was merged into."""
    unread: int
    """Tensors of the checkpoint that the model never reads: the vision tower's end, and constants."""


def import_tinyvla(
    folder: Path,
    out: Path,
    *,
    cameras: Sequence[str],
    base: Path | None = None,
    frame: tuple[int, int] | None = FRAME,
) -> ImportReport:
    """Converts the TinyVLA checkpoint in `folder` into the new policy folder `out`, running no code from it.

    Args:
        folder: the training's output folder, or a `checkpoint-N` in it.
        out: must not exist; nothing is written unless everything fits.
        cameras: names that the suite has for the cameras, in the order that the training had them in.
        base: the Llava-Pythia model that the training started from, for what `folder` lacks.
        frame: (height, width) that the training's data loading resized camera images to; None for images left as
            they are.

    Raises:
        UserError: anything that is missing, left over, damaged, or of another head or size.
    """
    if out.exists():
        raise UserError(f"{out} exists already; name a new folder for the policy")
    checkpoint = read_checkpoint(folder, base)
    config = policy_config(checkpoint, cameras, frame)
    statistics = read_statistics(checkpoint.statistics_file, config)
    tokenizer = _read_tokenizer(checkpoint.tokenizer_file, config.language.vocab_size)
    with torch.device("meta"):
        policy = TinyVLA(config, statistics, tokenizer)
    names = {name: published_name(name) for name in policy.state_dict()}
    unread = _check_tensors(checkpoint, policy.state_dict(), names, config.vision.layers, base)
    weights = {name: checkpoint.tensors[theirs].float().contiguous() for name, theirs in names.items()}
    policy.load_state_dict(weights, assign=True)
    policy.trained_on = (TrainedOn(stage="published"),)
    with atomic_folder(out) as temporary:
        policy.save(temporary)
    return ImportReport(config=config, tensors=len(weights), merged=checkpoint.merged, unread=unread)


def published_name(name: str) -> str:
    """Name of the policy's tensor `name` in the published checkpoints.

    >>> published_name("language.embed_in.weight")
    'gpt_neox.embed_in.weight'
    """
    if name.startswith("head.unet."):
        return f"embed_out.{unet.published_name(name.removeprefix('head.unet.'))}"
    for ours, theirs in PARTS:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise AssertionError(f"no published name for {name!r}")


def read_statistics(file: Path, config: TinyVLAConfig) -> Statistics:
    """The numbers that the training normalised with, from its `dataset_stats.pkl`.

    The pickle has mean and std of the state, and mean, std, min and max of the action, min and max already widened by
    1e-4. What it lacks nobody reads: the state's other measures are set to three std around the mean, the action's
    quantiles to its extremes.

    Raises:
        UserError: a measure is missing or of another length than the policy's.
    """
    values = read_pickle(file)
    wanted = ("action_mean", "action_std", "action_min", "action_max", "qpos_mean", "qpos_std")
    if not isinstance(values, dict) or not set(wanted) <= set(values):
        got = ", ".join(map(str, values)) if isinstance(values, dict) else type(values).__name__
        raise UserError(f"{file} holds {got or 'nothing'}; expected {', '.join(wanted)}")
    measures: dict[str, list[float]] = {}
    for name in wanted:
        size = config.action_dim if name.startswith("action") else config.state_dim
        array = np.asarray(values[name])
        if array.shape != (size,) or array.dtype.kind not in "fiu":
            raise UserError(f"{file} has {name} of shape {array.shape}; expected ({size},) by config.json")
        measures[name] = [float(x) for x in array]
    low, high = (
        [m + sign * 3 * s for m, s in zip(measures["qpos_mean"], measures["qpos_std"], strict=True)] for sign in (-1, 1)
    )
    return Statistics(
        state={
            "mean": measures["qpos_mean"],
            "std": measures["qpos_std"],
            **{"min": low, "max": high, "q01": low, "q99": high},
        },
        action={
            **{name: measures[f"action_{name}"] for name in ("mean", "std", "min", "max")},
            **{"q01": measures["action_min"], "q99": measures["action_max"]},
        },
    )


def _read_tokenizer(file: Path, vocab_size: int) -> Tokenizer:
    tokenizer = read_tokenizer(file)
    if tokenizer.token_to_id("<|endoftext|>") is None or tokenizer.get_vocab_size() > vocab_size:
        raise UserError(
            f"{file} knows {tokenizer.get_vocab_size()} tokens; expected Pythia's, of at most {vocab_size} with "
            "<|endoftext|> among them"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _check_tensors(
    checkpoint: PublishedCheckpoint,
    expected: Mapping[str, Tensor],
    names: Mapping[str, str],
    vision_layers: int,
    base: Path | None,
) -> int:
    """Checks that all tensors fit one to one; returns the number of those that are rightly left over."""
    got = checkpoint.tensors
    # The patch tokens are read before the tower's last layer.
    end = re.compile(
        rf"gpt_neox\.vision_tower\.vision_model\.(encoder\.layers\.{vision_layers - 1}|post_layernorm|head)\..+"
    )
    left = [name for name in got if name not in set(names.values())]
    unknown = [name for name in left if not end.fullmatch(name) and not BUFFERS.fullmatch(name)]
    missing = [theirs for theirs in names.values() if theirs not in got]
    present = [(theirs, expected[ours], got[theirs]) for ours, theirs in names.items() if theirs in got]
    problems = [f"{name} is missing" for name in missing]
    problems += [f"{name} is unknown" for name in unknown]
    problems += [
        f"{name} has shape {list(have.shape)}, expected {list(want.shape)}"
        for name, want, have in present
        if have.shape != want.shape
    ]
    problems += [
        f"{name} isn't made of finite numbers"
        for name, _, have in present
        if not have.is_floating_point() or not is_finite(have)
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        hint = (
            " Name the Llava-Pythia model that the training started from with --base." if missing and not base else ""
        )
        raise UserError(f"the tensors don't fit {checkpoint.config_file}: {'; '.join(problems[:3])}{more}.{hint}")
    return len(left)
