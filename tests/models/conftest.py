"""Fixtures of this folder."""

from trained_runs import digit_files, odd_files, stream, train, trained  # noqa: F401
