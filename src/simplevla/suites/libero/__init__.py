"""The LIBERO benchmark: real robosuite scenes, official initial states, five suites."""

import os

# MuJoCo chooses its renderer when it is first imported.
os.environ.setdefault("MUJOCO_GL", "egl")
