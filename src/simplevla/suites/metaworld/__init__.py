"""The Meta-World benchmark: 50 manipulation tasks of one arm, the benchmark that TinyVLA reports in simulation."""

import os

# MuJoCo chooses its renderer when it is first imported.
os.environ.setdefault("MUJOCO_GL", "egl")
