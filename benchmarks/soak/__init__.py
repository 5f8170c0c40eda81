"""The soak test: `python -m benchmarks.soak` (see run.py)."""
