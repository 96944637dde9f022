"""Benchmarks, one file each: `python -m benchmarks.NAME`. Every figure comes with a baseline measured in the same run."""
