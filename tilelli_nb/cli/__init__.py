"""The command line: `tilelli`, or `python -m tilelli_nb.cli`."""

from .app import main

__all__ = ["main"]
