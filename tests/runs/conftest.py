"""Fixtures of this folder."""

from made_runs import make_run  # noqa: F401
from trained_runs import digit_files, odd_files, stream, train, trained  # noqa: F401
