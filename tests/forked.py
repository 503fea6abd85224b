"""Processes forked from one that has imported torch and the training loop once: an import is longer than most cases."""

from multiprocessing import get_context

FORKED = get_context("forkserver")
FORKED.set_forkserver_preload(
    [
        "torchao.optim",
        "simplevla.distributed.learner",
        "simplevla.policies.openvla_oft.policy",
        "simplevla.training.loop",
    ]
)
