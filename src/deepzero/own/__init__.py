"""The user's own code by name, for the command line and for folders of runs that must find it again."""

from deepzero.own.code import absolute, called, imported, is_own, located, parted, require_kind
from deepzero.own.function_arguments import settings_of

__all__ = ["absolute", "called", "imported", "is_own", "located", "parted", "require_kind", "settings_of"]
