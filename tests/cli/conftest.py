"""Specimens of verification, for the commands that show its verdicts."""

from tests.verify.conftest import crashed, rebuilt

__all__ = ["crashed", "rebuilt"]
