"""The commands behind docs/results: `python -m benchmarks.speed.NAME` or `benchmarks.experiments.NAME`, from a checkout."""
