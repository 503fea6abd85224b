"""Tasks one after another, each with a small adapter. Numbers without a source were tried on one seed; docs/log.md."""

from dataclasses import replace

from simplevla.adapters.config import AdapterConfig, ContinualConfig
from simplevla.config import OptimizerConfig, SamplingConfig
from simplevla.recipes import libero, tabletop

ADAPTER = AdapterConfig(rank=8, alpha=8)
"""LoRA on every linear layer and convolution; arXiv 2603.11653 uses rank 32, here 8 for layers of 128 channels."""

LIBERO_THINGS = ("tomato_sauce", "butter", "milk", "ketchup")
"""Those that the supervised policy solves least often, so that each has something to learn."""


def tabletop_continual() -> ContinualConfig:
    """Five of the six tasks; `stack_blocks` is never trained and shows what is transferred."""
    train = replace(
        tabletop.train(),
        title="tabletop_continual",
        updates=8,
        sampling=SamplingConfig(groups=16, group_size=8, temperature=1.0),
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=4),
        eval_every=4,
    )
    tasks = ("slide_lid", "push_to_strip", "lift_block", "place_on_plate", "press_button")
    return ContinualConfig(train=train, tasks=tasks, adapter=ADAPTER)


def libero_continual() -> ContinualConfig:
    """Three tasks of libero_object, `lite` and `fast`; a fourth is never trained."""
    suite = replace(
        libero.suite(libero.OBJECT),
        tasks=tuple(f"pick_up_the_{thing}_and_place_it_in_the_basket" for thing in LIBERO_THINGS),
    )
    train = replace(
        libero.train(),
        title="libero_continual",
        suite=suite,
        updates=6,
        sampling=SamplingConfig(groups=8, group_size=8, temperature=1.0),
        optimizer=OptimizerConfig(lr=1e-3, warmup_steps=4),
        eval_every=3,
        minibatches=4,
    )
    return ContinualConfig(train=train, tasks=suite.tasks[:3], adapter=ADAPTER, eval_episodes_per_task=10)
