"""The command line: ``deepzero train``, ``deepzero recipes``, ...; nothing is decided here."""

from deepzero.cli.main import main

__all__ = ["main"]
