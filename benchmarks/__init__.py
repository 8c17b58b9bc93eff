"""Benchmarks of streamcca against pure NumPy and others: correct first, then timed.

``python -m benchmarks covariance truncation svcca files`` prints tables and verdicts; ``--json FILE`` writes every
single time.
Each contender runs in a process of its own with its own BLAS settings, and they take turns, so that a busy machine
slows all of them.
"""
