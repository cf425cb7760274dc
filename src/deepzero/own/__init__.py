"""The user's own code by name, for the command line and for folders of runs that must find it again."""

from deepzero.own.arguments import guess, settings_of
from deepzero.own.code import absolute, called, imported, is_own, located, parted, require_kind

__all__ = ["absolute", "called", "guess", "imported", "is_own", "located", "parted", "require_kind", "settings_of"]
