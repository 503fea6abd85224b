"""Says what reading a dataset will take before it begins."""

import os

from simplevla.demonstrations.dataset import LeRobotDataset

PNG_BYTES_PER_S = 30e6
"""Encoded bytes of PNG pictures that a core decodes in a second."""
VIDEO_BYTES_PER_S = 200e6
"""Decoded bytes that a core gets out of a video in a second."""


def outlook(dataset: LeRobotDataset) -> str:
    """Frames, episodes, cameras, decoded bytes, and the seconds that decoding all of it takes on this machine's cores.

    The seconds follow from the sizes of files and pictures. Other formats than PNG and H.264 may take twice or half.
    """
    seconds = dataset.embedded_bytes / PNG_BYTES_PER_S + dataset.video_bytes / VIDEO_BYTES_PER_S
    return (
        f"{dataset.folder}: {dataset.num_frames:,} frames of {dataset.num_episodes:,} episodes through "
        f"{', '.join(dataset.cameras)}, {dataset.decoded_bytes / 1e9:.3g} GB decoded, in about "
        f"{max(seconds / (os.cpu_count() or 1), 1):,.0f} s"
    )
