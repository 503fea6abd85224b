"""Commands behind docs/results: `python -m benchmarks.speed.NAME` or `benchmarks.experiments.NAME` in a checkout."""
