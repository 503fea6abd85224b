"""The LIBERO benchmark: real robosuite scenes, official initial states, its five suites and LIBERO-PRO's."""

import os

# MuJoCo chooses its renderer when it is first imported.
os.environ.setdefault("MUJOCO_GL", "egl")
