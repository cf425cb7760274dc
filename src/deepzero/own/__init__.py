"""The user's own code by name, for the command line and for folders of runs that must find it again."""

from deepzero.own.arguments import settings_of
from deepzero.own.code import called, imported, is_own, located, require_kind

__all__ = ["called", "imported", "is_own", "located", "require_kind", "settings_of"]
