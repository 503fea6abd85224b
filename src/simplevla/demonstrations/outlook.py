"""Says what reading a dataset will take before it begins."""

import os

from simplevla.demonstrations.dataset import LeRobotDataset

IMAGE_BYTES_PER_S = 70e6
"""Decoded bytes that a core gets out of images in a second: PNG of 256 pixels gave 50 to 97 MB on our build machine.

The sizes of the files tell less: for the same pictures with and without noise the encoded bytes differ sixfold, the
time twofold.
"""
VIDEO_BYTES_PER_S = 175e6
"""The same out of videos: H.264 gave 185 MB, AV1 171 MB."""


def outlook(dataset: LeRobotDataset) -> str:
    """Frames, episodes, cameras, decoded bytes, and the seconds that decoding it takes on all cores."""
    images = dataset.decoded_bytes - dataset.video_bytes
    seconds = (images / IMAGE_BYTES_PER_S + dataset.video_bytes / VIDEO_BYTES_PER_S) / (os.cpu_count() or 1)
    return (
        f"{dataset.folder}: {dataset.num_frames:,} frames of {dataset.num_episodes:,} episodes through "
        f"{', '.join(dataset.cameras)}, {dataset.decoded_bytes / 1e9:.3g} GB decoded, in about {max(seconds, 1):,.0f} s"
    )
