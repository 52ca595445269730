"""Benchmarks with right and wrong answers: local multiple-choice files, and tasks of lm-evaluation-harness."""
