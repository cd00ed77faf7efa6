"""Rows of tables in Parquet's format: columns are the fields of a line."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.batch.input_file import File
from paddlenlp_codegen_task.batch.rows import FIELDS, KNOWN, Refused, Row, row_of
from paddlenlp_codegen_task.files import parse_json

_ROWS = 1024  # that are read at once


def read(files: Sequence[File]) -> tuple[str, list[Callable[[], Iterator[Row | Refused]]], int]:
    """The identity of tables, pieces that make their rows, and how many there are.

    Rows are numbered through all files. A piece is a group of rows, as the file has them.

    Raises:
        OSError: a file cannot be read.
        ValueError: one is not in Parquet's format, or has a column that is no field.
    """
    digests: list[str] = []
    pieces: list[Callable[[], Iterator[Row | Refused]]] = []
    count = 0
    for one in files:
        with one.open() as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        with _table(one) as table:
            for name in table.schema_arrow.names:
                if name not in FIELDS:
                    raise ValueError(f"{one.where}: unknown column {checks.shown(name)}: {KNOWN}")
            for group in range(table.num_row_groups):
                pieces.append(partial(_rows, one.absolute(), group, count + 1))
                count += table.metadata.row_group(group).num_rows
    identity = digests[0] if len(digests) == 1 else _digest("".join(digests))
    return identity, pieces, count


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _rows(source: File, group: int, first: int) -> Iterator[Row | Refused]:
    with _table(source) as table:
        number = first
        for batch in table.iter_batches(_ROWS, row_groups=[group]):
            for values in batch.to_pylist():
                yield _row(values, number)
                number += 1


@contextmanager
def _table(source: File) -> Iterator[parquet.ParquetFile]:
    """An open table; errors name its file."""
    with source.open() as file:
        try:
            yield parquet.ParquetFile(file)
        except pa.ArrowException as error:
            raise ValueError(f"{source.where}: {checks.line(str(error), 300)}") from error


def _row(values: Mapping[str, Any], number: int) -> Row | Refused:
    """A row, in which null is as if it were not there: a table has all columns in all rows."""
    given = {name: value for name, value in values.items() if value is not None}
    options = given.get("options")
    if isinstance(options, str):
        try:
            given["options"] = parse_json(options.encode())
        except ValueError as error:
            return Refused(checks.line(f"options {error}"), given.get("id"), number)
    elif isinstance(options, list) and all(isinstance(one, tuple) for one in options):  # a map
        given["options"] = dict(options)
    elif isinstance(options, dict):
        given["options"] = {name: one for name, one in options.items() if one is not None}
    return row_of(given, number)
