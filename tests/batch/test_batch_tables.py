"""Rows of tables in Parquet's format, and of files that pyarrow reads."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from paddlenlp_codegen_task.batch.rows import Refused, Row
from paddlenlp_codegen_task.batch.source import PIECE, Source
from paddlenlp_codegen_task.requests import Infill


def written(path: Path, columns: dict[str, Any], group: int = 2) -> Path:
    parquet.write_table(pa.table(columns), path, row_group_size=group)
    return path


def test_columns_are_the_fields_of_a_line(tmp_path: Path) -> None:
    options = pa.array(
        [{"max_length": 3, "seed": None}, None, None, None, {"max_length": None, "seed": 5}],
        pa.struct([("max_length", pa.int64()), ("seed", pa.int64())]),
    )
    columns = {
        "prompt": ["a", "b", None, None, "e"],
        "prefix": [None, None, "c", None, None],
        "suffix": [None, None, "d", None, None],
        "id": ["x", None, "y", None, ""],
        "options": options,
    }
    source = Source.of_path(written(tmp_path / "in.parquet", columns))
    assert source.count == 5
    assert list(source.rows()) == [
        Row("x", "a", {"max_length": 3}, 1),
        Row(2, "b", {}, 2),
        Row("y", Infill("c", "d"), {}, 3),
        Refused("prompt is missing", None, 4),
        Refused("id must have 1 to 4095 bytes, and has 0", None, 5),
    ]
    pieces = list(source.pieces())
    assert len(pieces) == 3
    assert list(pickle.loads(pickle.dumps(pieces[1]))()) == list(source.rows())[2:4]
    assert Source.of_path(tmp_path / "in.parquet").identity == source.identity
    written(tmp_path / "in.parquet", {**columns, "id": ["x", None, "z", None, ""]})
    assert Source.of_path(tmp_path / "in.parquet").identity != source.identity


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (pa.array(['{"seed": 1}', "{"]), [{"seed": 1}, "options is not valid JSON"]),
        (pa.array([[("seed", 1)], []], pa.map_(pa.string(), pa.int64())), [{"seed": 1}, {}]),
        (pa.array([5, None]), ["options must be an object, got 5", {}]),
        (pa.array([[1], []], pa.list_(pa.int64())), ["options must be an object", {}]),
    ],
    ids=["json", "map", "integer", "list"],
)
def test_options_of_any_kind(tmp_path: Path, options: Any, expected: list[Any]) -> None:
    path = written(tmp_path / "in.parquet", {"prompt": ["a", "b"], "options": options})
    for row, one in zip(Source.of_path(path).rows(), expected, strict=True):
        if isinstance(row, Row):
            assert row.options == one
        else:
            assert row.reason.startswith(str(one))


def test_a_folder_of_tables_is_numbered_through(tmp_path: Path) -> None:
    folder = tmp_path / "in.parquet"
    folder.mkdir()
    for name, prompts in (("b", ["3"]), ("a", ["1", "2"])):
        written(folder / f"part-{name}.parquet", {"prompt": prompts})
    (folder / "_SUCCESS").touch()
    rows = [Row(n, str(n), {}, n) for n in (1, 2, 3)]
    here, there = Source.of_path(folder), Source.of_uri(folder.as_uri())
    assert list(here.rows()) == list(there.rows()) == rows
    assert here.identity == there.identity
    assert (here.anywhere, there.anywhere) == (False, True)
    (tmp_path / "empty.parquet").mkdir()
    with pytest.raises(ValueError, match=r"has no file that ends in \.parquet"):
        Source.of_path(tmp_path / "empty.parquet")


@pytest.mark.parametrize("scheme", ["path", "uri"])
def test_lines_come_in_pieces(tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in.jsonl"
    lines = [json.dumps({"prompt": str(n)}) for n in range(1, 2 * PIECE + 6)]
    lines[5] = lines[PIECE] = ""
    path.write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    source = Source.of_path(Path(path.name)) if scheme == "path" else Source.of_uri(path.as_uri())
    monkeypatch.chdir("/")  # where another process may be
    assert source.anywhere == (scheme == "uri")
    assert source.count == len(lines) - 2
    pieces = pickle.loads(pickle.dumps(list(source.pieces())))
    assert len(pieces) == 3
    found = [row for piece in reversed(pieces) for row in piece()]
    assert len(found) == source.count
    for row in found:
        assert isinstance(row, Row)
        assert row.prompt == str(row.line)
        assert row.id == row.line


def test_what_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "in.parquet").write_text('{"prompt": "a"}')
    with pytest.raises(ValueError, match=r"in.parquet: [^\n]*Parquet[^\n]*$"):
        Source.of_path(tmp_path / "in.parquet")
    path = written(tmp_path / "other.parquet", {"prompt": ["a"], "Prompt": ["b"]})
    with pytest.raises(ValueError, match=r"other\.parquet: unknown column 'Prompt': a line has"):
        Source.of_path(path)
    with pytest.raises(FileNotFoundError):
        Source.of_path(tmp_path / "no.parquet")
    with pytest.raises(FileNotFoundError):
        Source.of_uri((tmp_path / "no.jsonl").as_uri())
    with pytest.raises(ValueError, match="nosuch"):
        Source.of_uri("nosuch://a/b.jsonl")
