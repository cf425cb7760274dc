"""From raw images and rows to the inputs of a network: the same at training and afterwards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self, get_type_hints

import torch
from jaxtyping import Float, Float64, Real, Shaped
from torch import Tensor

from deepzero import validation
from deepzero.data.images import downsample
from deepzero.data.raw_images import VALUES, RawImages
from deepzero.data.raw_rows import read_rows
from deepzero.errors import InvalidInputError

IMAGES, TABLE = "images", "table"
KINDS = (IMAGES, TABLE)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The steps from a sample of a data set to the input of a network, to be done to other samples.

    Get one from :attr:`Dataset.preprocessing <deepzero.data.Dataset.preprocessing>`; keep it as the plain values of
    :meth:`to_json`. A call gives, bit for bit, what :class:`~deepzero.data.BatchLoader` gives for the same samples:

    1. **reading**: an image file is decoded to gray or color as the set is; with a ``shorter_side`` it is resized
       (bicubic) until its shorter side has that number of pixels, and the middle is cut out; without, it must have the
       size of the set. From a table, columns are taken by name.
    2. **averaging** over tiles of ``tile`` x ``tile`` pixels.
    3. **normalizing**: ``(values / scale - mean) / std``, channel by channel. The columns of a table are its channels.

    ``values`` says which numbers an array of pixels may hold:

    - ``"bytes"``: the set holds integers from 0 to ``scale``. Integers are taken as they are. Floating-point numbers
      are taken as parts of white, from 0 to 1; others are refused, and so are arrays of only 0.0 and 1.0, in which 1
      could be either white or the darkest gray.
    - ``"fractions"``: the set holds floating-point numbers from 0 to ``scale``, which are taken as they are; uint8 is
      divided by 255.
    - ``"reals"``: the set holds other numbers, and new ones must be in the same units, which nobody can check; so uint8
      and image files are refused.

    Attributes:
        kind: ``"images"`` or ``"table"``.
        input_shape: shape of a sample as the network gets it: channels, height and width, or the number of columns.
        values: see above; ``"reals"`` for a table.
        scale: the value that stands for 1 (white).
        mean: of each channel, in units of ``scale``.
        std: of each channel, in units of ``scale``.
        shorter_side: pixels that an image's shorter side is brought to; None if images come in their size.
        tile: side of the tiles that are averaged, in pixels; 1 for none.
        class_names: of the labels 0, 1, ...
        column_names: of a table; empty if its columns have none.
        target: the column of a table that holds the labels, if it has a name; ignored where it is there.

    Raises:
        InvalidInputError: the fields do not fit together.

    >>> from deepzero.data import load
    >>> preprocessing = load("digits").train.preprocessing
    >>> preprocessing.input_shape, preprocessing.values, preprocessing.scale
    ((1, 8, 8), 'bytes', 16.0)
    >>> preprocessing(torch.zeros(3, 8, 8, dtype=torch.uint8)).shape
    torch.Size([3, 1, 8, 8])
    >>> Preprocessing.from_json(preprocessing.to_json()) == preprocessing
    True
    """

    kind: str
    input_shape: tuple[int, ...]
    values: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shorter_side: int | None = None
    tile: int = 1
    class_names: tuple[str, ...] = ()
    column_names: tuple[str, ...] = ()
    target: str | None = None

    def __post_init__(self) -> None:
        dimensions = {IMAGES: 3, TABLE: 1}
        if self.kind not in KINDS or self.values not in VALUES:
            raise InvalidInputError(
                f"a preprocessing is of one of the kinds {', '.join(KINDS)}, and of the values {', '.join(VALUES)}; "
                f"got {self.kind!r}, {self.values!r}"
            )
        if len(self.input_shape) != dimensions[self.kind]:
            raise InvalidInputError(
                f"the input_shape of {self.kind} has {dimensions[self.kind]} numbers, got {self.input_shape!r}"
            )
        for name, sizes in (("input_shape", self.input_shape), ("tile", (self.tile,))):
            for size in sizes:
                validation.count(f"a number of {name}", size)
        validation.positive("scale", self.scale, hint="255.0")
        channels = self.input_shape[0]
        if not all(math.isfinite(number) for number in (*self.mean, *self.std)):
            raise InvalidInputError(f"mean and std must be finite, got {self.mean!r} and {self.std!r}")
        if len(self.mean) != channels or len(self.std) != channels or not all(std > 0 for std in self.std):
            raise InvalidInputError(
                f"mean and std must have a value for each of {channels} channels, and std be positive; "
                f"got {self.mean!r} and {self.std!r}"
            )

    def __call__(self, raw: Any, *, dtype: torch.dtype = torch.float32) -> Float[Tensor, "b ..."]:
        """Inputs of the network.

        Args:
            raw: for images: the path of an image file or of a folder of them (see
                :func:`~deepzero.data.image_files`), a PIL image, a list of these, or an array or tensor of one image
                or many, with the channels first or last. For tables: the path of a CSV or Parquet file, a mapping of
                columns (or data frame, or list of rows that are mappings), or an array ``[b, columns]``.
            dtype: floating-point type of the result.

        Raises:
            InvalidInputError: it is something else, of another shape, or has no single meaning; the message says what
                was expected, what came, and what to type instead.
            DataNotFoundError: there is no such file.
        """
        return self.normalize(self.read(raw), dtype=dtype)

    def read(self, raw: Any) -> Real[Tensor, "b ..."]:
        """Steps 1 and 2 alone: values as :attr:`Dataset.inputs <deepzero.data.Dataset.inputs>` holds them."""
        if self.kind == TABLE:
            return read_rows(raw, count=self.input_shape[0], column_names=self.column_names, target=self.target)
        channels, height, width = self.input_shape
        images = RawImages(
            shape=(channels, height * self.tile, width * self.tile),
            shorter_side=self.shorter_side,
            values=self.values,
            scale=self.scale,
        ).read(raw)
        return images if self.tile == 1 else downsample(images, height)

    def normalize(
        self, inputs: Shaped[Tensor, "b ..."], *, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "b ..."]:
        """Step 3 alone."""
        return normalized(inputs, *self.constants(dtype, inputs.device), dtype)

    def constants(
        self, dtype: torch.dtype, device: torch.device | str
    ) -> tuple[Float[Tensor, "c ..."], Float[Tensor, "c ..."]]:
        """Mean and standard deviation in units of raw values, as tensors to compute with.

        Low precision is only the format of the result: its seven or ten bits would not hold 255 pixel values. Columns
        of a table may be far from 0 (a year, a time in seconds), so their means are taken off in float64.
        """
        precision = torch.float64 if self.kind == TABLE else torch.promote_types(dtype, torch.float32)
        shape = (-1,) + (1,) * (len(self.input_shape) - 1)

        def constant(values: tuple[float, ...]) -> Float64[Tensor, "c ..."] | Float[Tensor, "c ..."]:
            return (torch.tensor(values, dtype=torch.float64) * self.scale).to(precision).to(device).reshape(shape)

        return constant(self.mean), constant(self.std)

    def to_json(self) -> dict[str, Any]:
        """The fields as values that JSON has."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The preprocessing that :meth:`to_json` described.

        Raises:
            InvalidInputError: a field is missing, unknown, or not what it should be.
        """
        known = get_type_hints(cls)
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
        }
        if odd := known.keys() ^ set(record):
            raise InvalidInputError(
                f"a record of a preprocessing has the fields {', '.join(sorted(known))}; "
                f"missing or unknown: {', '.join(sorted(odd))}"
            )
        if wrong := [name for name, hint in known.items() if not validation.fits(values[name], hint)]:
            raise InvalidInputError(
                f"{wrong[0]} of a preprocessing cannot be {values[wrong[0]]!r}; put the record back as it was"
            )
        return cls(**values)


def normalized(
    inputs: Shaped[Tensor, "b ..."], mean: Float[Tensor, "c ..."], std: Float[Tensor, "c ..."], dtype: torch.dtype
) -> Float[Tensor, "b ..."]:
    """Inputs less their mean, over their standard deviation, in the precision of these two."""
    return ((inputs.to(mean.dtype) - mean) / std).to(dtype)
