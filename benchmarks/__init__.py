"""Measurements that back the figures in `docs/benchmarks.md`. Run from the repository's root; not shipped."""
