"""Benchmarks, one file each: `python -m benchmarks.NAME`. Every figure has a baseline measured in the same run."""
