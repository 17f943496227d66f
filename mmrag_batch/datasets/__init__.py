"""Public benchmarks, as they are published, as tables of `predict`."""
