"""Tables in files: CSV and Parquet, as columns by name."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepzero.data.data_files import require_memory
from deepzero.errors import DataNotFoundError, InvalidInputError
from deepzero.extras import required_for
from deepzero.text import one_line

CSV_ENDINGS, PARQUET_ENDINGS = (".csv", ".tsv", ".txt"), (".parquet", ".pq")
PARQUET_MAGIC = b"PAR1"
DELIMITERS = (",", ";", "\t")
LINE = 1 << 20
"""Letters of the header of a CSV file, at most."""
ROWS = 4096
"""Rows of a Parquet file that are decoded at a time; their size is looked at, for a few bytes can stand for many."""


def read_columns(path: Path) -> Any:
    """The table in a CSV file with a header, or in a Parquet file, as a :class:`pyarrow.Table`.

    A CSV file is separated by whichever of comma, semicolon and tab is most frequent in its first line.

    Raises:
        DataNotFoundError: there is no such file.
        InvalidInputError: it is no such table, has no header or no row, or two columns of one name.
    """
    with required_for("a table"):
        import pyarrow as pa  # noqa: PLC0415 - slow to import

    if not path.is_file():
        raise DataNotFoundError(f"there is no file {path}")
    require_memory(path, path.stat().st_size)
    try:
        is_parquet = path.suffix.lower() in PARQUET_ENDINGS or _starts(path, PARQUET_MAGIC)
        table = parquet_table(path) if is_parquet else _csv(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError, csv.Error) as error:
        raise InvalidInputError(
            f"{path} cannot be read as a table ({one_line(error)}); write it again, as UTF-8 text or Parquet"
        ) from error
    names = table.column_names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidInputError(f"{path} has several columns called {', '.join(twice)}; give each a name of its own")
    if table.num_rows == 0:
        raise InvalidInputError(f"{path} holds no row besides its header; give it a row for each sample")
    return table


def parquet_table(path: Path, columns: Sequence[str] | None = None) -> Any:
    """The table in a Parquet file, or some of its columns, as a :class:`pyarrow.Table`.

    Raises:
        InvalidInputError: it would not fit into memory, as its header says, or as shows while it is decoded.
        pyarrow.ArrowException: it is damaged; pyarrow raises others, too.
    """
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    with parquet.ParquetFile(path) as file:
        header = file.metadata
        require_memory(path, sum(header.row_group(k).total_byte_size for k in range(header.num_row_groups)))
        require_memory(path, header.num_rows * max(header.num_columns, 1))
        batches, size = [], 0
        for batch in file.iter_batches(batch_size=ROWS, columns=columns, use_threads=False):
            batches.append(batch)
            size += batch.nbytes
            require_memory(path, size)
        return pa.Table.from_batches(batches) if batches else file.read(columns=columns)


def _csv(path: Path) -> Any:
    from pyarrow import csv as arrow_csv  # noqa: PLC0415

    with path.open(encoding="utf-8-sig", newline="") as file:
        line = file.readline(LINE)
    delimiter = max(DELIMITERS, key=line.count)
    header = next(csv.reader([line], delimiter=delimiter), [])
    if not header:
        raise InvalidInputError(f"{path} is empty; expected a header with the names of the columns, then rows")
    if all(map(is_number, header)):
        raise InvalidInputError(
            f"the first line of {path} holds numbers ({', '.join(header[:4])}, ...), but it must be a header with the "
            "names of the columns; put one above it, such as "
            f"{delimiter.join([f'x{i}' for i in range(1, min(len(header), 4))])}{delimiter}label"
        )
    if "" in map(str.strip, header):
        raise InvalidInputError(
            f"column {header.index('') + 1 if '' in header else 1} of {path} has no name; if it is the index that "
            "pandas writes, write the file again with df.to_csv(path, index=False)"
        )
    return arrow_csv.read_csv(path, parse_options=arrow_csv.ParseOptions(delimiter=delimiter))


def is_number(text: str) -> bool:
    """True if a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _starts(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic
