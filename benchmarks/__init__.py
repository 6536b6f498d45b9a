"""Measures understudy beside what people write without it; `python -m benchmarks --help` says how."""
