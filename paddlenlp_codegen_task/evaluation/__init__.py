"""Benchmarks of code models, run on any checkpoint: problems, completions, verdicts, reports."""
