"""Random streams addressed by integers: the same address gives the same stream, whatever was drawn before."""

from __future__ import annotations

import numpy as np
import torch

from deepzero.errors import InvalidInputError


def generator(*address: int) -> torch.Generator:
    """A CPU generator whose state is a function of the non-negative integers in ``address`` alone.

    Raises:
        InvalidInputError: a number of the address is negative or not an integer.

    >>> first = torch.rand(2, generator=generator(0, 1))
    >>> torch.equal(first, torch.rand(2, generator=generator(0, 1)))
    True
    >>> torch.equal(first, torch.rand(2, generator=generator(1, 0)))
    False
    """
    for number in address:
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise InvalidInputError(f"seeds and positions must be integers of at least 0, got {number!r}")
    seed = np.random.SeedSequence(address).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed))
