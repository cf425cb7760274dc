"""``deepzero completion``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from deepzero.cli.options import DONE, Json, Quiet
from deepzero.cli.output import Output


@dataclass(frozen=True)
class Completion:
    """Print the script with which a shell completes commands and options.

    For bash: deepzero completion bash > ~/.local/share/bash-completion/completions/deepzero
    """

    shell: Positional[Literal["bash", "zsh", "fish"]]
    """The shell."""
    quiet: Quiet = False
    json: Json = False

    def run(self, output: Output) -> int:
        """Print the script."""
        from deepzero.cli.program import completion_script  # noqa: PLC0415 - which knows this command

        script = completion_script(self.shell)
        if output.as_json:
            output.result("", shell=self.shell, script=script)
        else:
            sys.stdout.write(script)
        return DONE
