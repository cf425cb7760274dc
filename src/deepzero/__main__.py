"""``python -m deepzero`` is the command ``deepzero``."""

import sys

from deepzero.cli import main

if __name__ == "__main__":
    sys.exit(main())
