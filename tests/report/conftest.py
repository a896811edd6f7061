"""Fixtures of this folder."""

from made_runs import make_run  # noqa: F401
