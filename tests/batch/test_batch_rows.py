"""Rows from lines and files: what is none says why, and the others go on."""

from __future__ import annotations

import io
import json
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from paddlenlp_codegen_task.batch.finished import Keys, key_of, unfinished
from paddlenlp_codegen_task.batch.rows import Refused, Row, row_seed, rows_of_lines
from paddlenlp_codegen_task.batch.source import Source
from paddlenlp_codegen_task.files import MOST_BYTES

GOOD = b'{"prompt": "x"}'


def rows(content: bytes) -> list[Row | Refused]:
    return list(rows_of_lines(io.BytesIO(content)))


def test_a_line_is_a_row():
    content = b"""\xef\xbb\xbf{"prompt": "a"}

{"id": "mine", "prompt": "b\\n", "options": {"seed": 3}}\r
{"id": -7, "prompt": "", "options": null}
   \t
{"id": null, "prompt": "\xe4\xbd\xa0", "options": {"logit_bias": {"5": 1.5, "x": 2}}}"""
    assert rows(content) == [
        Row(1, "a", {}, 1),
        Row("mine", "b\n", {"seed": 3}, 3),
        Row(-7, "", {}, 4),
        Row(6, "你", {"logit_bias": {5: 1.5, "x": 2}}, 6),
    ]
    assert rows(b"") == rows(b"\n\n") == []


@pytest.mark.parametrize(
    ("line", "reason", "row_id"),
    [
        (b"nothing", "the line is not valid JSON: Expecting value", None),
        (b'{"prompt": "x"', "the line is not valid JSON: ", None),
        (b'{"prompt": "\xff"}', "the line is not valid JSON: 'utf-8' codec", None),
        (b"\xff\xfe{\0}\0", "the line is not valid JSON: 'utf-8' codec", None),
        (b"[" * 100_000, "the line is not valid JSON: nested too deeply", None),
        (b'{"prompt": NaN}', "the line is not valid JSON: NaN is no number", None),
        (b'{"prompt": "x", "options": {"top_p": 1e999}}', "1e999 is beyond any float", None),
        (b'["x"]', "the line must hold a JSON object$", None),
        (b'"x"', "the line must hold a JSON object$", None),
        (b"null", "the line must hold a JSON object$", None),
        (b"{}", "prompt is missing$", None),
        (b'{"id": "a"}', "prompt is missing$", "a"),
        (b'{"prompt": null}', "prompt must be a string, got None$", None),
        (b'{"prompt": 5, "id": 8}', "prompt must be a string, got 5$", 8),
        (b'{"prompt": ["x"]}', r"prompt must be a string, got \['x'\]$", None),
        (b'{"prompt": "x", "id": true}', "id must be a string or an integer, got True$", None),
        (b'{"prompt": "x", "id": 1.5}', "id must be a string or an integer, got 1.5$", None),
        (b'{"prompt": "x", "id": [1]}', r"id must be a string or an integer, got \[1\]$", None),
        (b'{"prompt": "x", "id": ' + b"9" * 4000 + b"}", "id must be at most 9223372036", None),
        (b'{"prompt": "x", "id": -' + b"9" * 4000 + b"}", "id must be at least -922337203", None),
        (b'{"prompt": "x", "id": ""}', "id must have 1 to 4095 bytes, and has 0$", None),
        (b'{"prompt": "x", "id": "' + b"i" * 4096 + b'"}', "id must have 1 to 4095 bytes", None),
        (rb'{"prompt": "x", "id": "\ud800"}', "id: .* holds a lone surrogate", None),
        (b'{"prompt": "x", "id": 1, "options": []}', r"options must be an object, got \[\]$", 1),
        (b'{"prompt": "x", "options": "fast"}', "options must be an object, got 'fast'$", None),
        (b'{"prompt": "x", "id": 2, "seed": 1}', "unknown field 'seed': a line has prompt", 2),
        (rb'{"prompt": "x", "a\nb\ud800": 1}', r"unknown field 'a\\nb\\ud800': a line has", None),
        (b'{"prompt": "' + b"x" * MOST_BYTES + b'"}', "must not have more than 16,777,216", None),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_bad_line_says_why(line: bytes, reason: str, row_id: Any):
    first, bad, last = rows(GOOD + b"\n" + line + b"\n" + GOOD)
    assert (first, last) == (Row(1, "x", {}, 1), Row(3, "x", {}, 3))
    assert isinstance(bad, Refused)
    assert (bad.id, bad.line) == (row_id, 2)
    assert re.search(reason, bad.reason)
    assert len(bad.reason) <= 300
    assert bad.reason.isprintable()


def test_a_line_of_a_hundred_megabytes_is_not_held():
    """What reads it takes no more of it at once than a line may have."""

    class Long(io.RawIOBase):
        """So many bytes of a line, and another line."""

        left = 100 << 20
        rest = b"\n" + GOOD
        largest = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            size = min(len(buffer), self.left)
            self.largest = max(self.largest, len(buffer))
            if size:
                buffer[:size] = b"x" * size
                self.left -= size
                return size
            size = min(len(buffer), len(self.rest))
            buffer[:size], self.rest = self.rest[:size], self.rest[size:]
            return size

    raw = Long()
    bad, good = rows_of_lines(io.BufferedReader(raw))
    assert isinstance(bad, Refused)
    assert bad.reason == "the line must not have more than 16,777,216 bytes"
    assert good == Row(2, "x", {}, 2)
    assert raw.largest <= MOST_BYTES


def test_a_file_is_known_again(tmp_path: Path):
    file = tmp_path / "in.jsonl"
    file.write_bytes(GOOD + b"\n\n  \n" + GOOD)
    source = Source.of_path(file)
    assert source.count == 2
    assert list(source.rows()) == list(source.rows()) == rows(file.read_bytes())
    assert Source.of_path(file).identity == source.identity
    file.write_bytes(GOOD + b"\n\n  \n" + GOOD + b" ")
    assert Source.of_path(file).identity != source.identity
    assert Source.of_stream(io.BytesIO(GOOD)).identity is None


def test_a_folder_s_files_are_prompts(tmp_path: Path):
    contents = {
        "b.py": b"def f():\r\n",
        "a/z.txt": "你好".encode(),
        "a/y/deep": b"x",
        "a b.py": b" ",
        ".hidden": b"no",
        ".git/config": b"no",
        "binary": b"\xff\x00",
        "large": b"x" * (MOST_BYTES + 1),
        "empty": b"",
    }
    for name, content in contents.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "linked").symlink_to("b.py")
    (tmp_path / "loop").symlink_to(".")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")).write_text("x")
    source = Source.of_path(tmp_path)
    found = list(source.rows())
    assert source.count == len(found) == 11
    assert [one for one in found if isinstance(one, Row)] == [
        Row("a b.py", " "),
        Row("b.py", "def f():\r\n"),
        Row("empty", ""),
        Row("linked", "def f():\r\n"),
        Row("a/z.txt", "你好"),
        Row("a/y/deep", "x"),
    ]
    refused = {one.id: one.reason for one in found if isinstance(one, Refused)}
    assert refused.pop("binary").startswith("the file is not UTF-8: ")
    assert refused.pop(r"'\udcff'").endswith("holds a lone surrogate, not valid Unicode")
    assert refused == {
        "dangling": "the file cannot be read: No such file or directory",
        "fifo": "the file is not a regular one",
        "large": "the file must not have more than 16,777,216 bytes",
    }
    (tmp_path / "b.py").write_text("def g():\r\n")
    assert Source.of_path(tmp_path).identity != source.identity


def test_what_is_neither_file_nor_folder(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        Source.of_path(tmp_path / "no")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="is not a regular file"):
        Source.of_path(tmp_path / "fifo")


def test_lines_of_a_stream_come_when_they_are_written():
    reading, writing = os.pipe()
    with open(reading, "rb") as file:
        found = Source.of_stream(file).rows()
        for n in range(3):
            os.write(writing, json.dumps({"prompt": str(n)}).encode() + b"\n")
            came: list[Any] = []
            reader = threading.Thread(target=lambda came=came: came.append(next(found)))
            reader.start()
            reader.join(60)
            assert came == [Row(n + 1, str(n), {}, n + 1)]
        os.close(writing)
        assert list(found) == []


def test_the_seed_of_a_row_is_documented():
    # printf '7:1' | sha256sum, and of 7:"a"
    assert row_seed(7, 1) == 0xD7A0CEE7B61EB0E3E4776E245CFAFBFB
    assert row_seed(7, "a") == 0x783DE832DB1ABA1E842AF48010D7B99B
    assert len({row_seed(7, 1), row_seed(7, "1"), row_seed(8, 1), row_seed(7, 2)}) == 4
    assert 0 <= row_seed(2**128 - 1, "你") < 2**128


def test_keys():
    keys = Keys()
    wanted = [("id", n) for n in range(20_000)] + [("id", str(n)) for n in range(20_000)]
    assert all(keys.add(one) for one in wanted)
    assert not any(keys.add(one) for one in wanted)
    assert len(keys) == 40_000
    assert all(one in keys for one in wanted)
    assert not any(("line", n) in keys for n in range(20_000))
    assert keys._table.itemsize * len(keys._table) <= 32 * len(keys)


def test_what_has_ended_is_left_out():
    lines = [
        Row("a", "x", {}, 1),
        Row("a", "y", {}, 2),
        Refused("bad", None, 3),
        Row("b", "z", {}, 4),
        Row(5, "z", {}, 5),
        Row(5, "of another line's number", {}, 6),
    ]
    first = list(unfinished(iter(lines), Keys()))
    assert first[0::3] == lines[0::3]
    same = "an earlier row has the same id"
    assert first[1] == Refused(same, "a", 2)
    assert first[5] == Refused(same, 5, 6)
    for ended in range(7):
        finished = Keys()
        for one in first[:ended]:
            finished.add(key_of(one))
        assert list(unfinished(iter(lines), finished)) == first[ended:]
    # A row that its prompt or options spoil is told by its line, too.
    finished = Keys()
    finished.add(key_of(Refused("too long", "b", 4)))
    assert lines[3] not in list(unfinished(iter(lines), finished))
