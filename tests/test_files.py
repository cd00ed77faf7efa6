"""Small files: what is read is bounded and one line when it is wrong; what is written is whole."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from paddlenlp_codegen_task import files
from paddlenlp_codegen_task.files import is_file_name, read_json, write_file

BROKEN = {
    "nothing": (b"", "not valid JSON"),
    "no JSON": (b"not JSON", "not valid JSON"),
    "cut": (b'{"a": [1, ', "not valid JSON"),
    "a list": (b"[]", "must hold a JSON object"),
    "null": (b"null", "must hold a JSON object"),
    "deep lists": (b"[" * 100_000, "nested too deeply"),
    "deep objects": (b'{"a":' * 100_000, "nested too deeply"),
    "deep and closed": (b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested too deeply"),
    "NaN": (b'{"a": NaN}', "NaN is no number"),
    "Infinity": (b'{"a": [-Infinity]}', "-Infinity is no number"),
    "beyond a float": (b'{"a": 1e999}', "1e999 is beyond any float"),
    "a long float": (b'{"a": ' + b"9" * 10_000 + b".0}", "beyond any float"),
    "a long integer": (b'{"a": ' + b"9" * 100_000 + b"}", "not valid JSON: .*digits"),
    "line break in a text": (b'{"a": "b\nc"}', "not valid JSON: Invalid control character"),
    "NUL": (b'{"a": 1}\0', "not valid JSON"),
    "NULs": (bytes(1000), "not valid JSON"),
    "no UTF-8": (b'{"a": "\xff"}', "not valid JSON: .*utf-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not valid JSON"),
    "a byte-order mark": (b"\xef\xbb\xbf{}", "not valid JSON"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_json_object_is_one_line_that_names_the_file(case: str, tmp_path: Path):
    content, message = BROKEN[case]
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_json(path)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).splitlines() == [str(caught.value)]
    assert len(str(caught.value)) < 1000


def test_reads_what_json_has(tmp_path: Path):
    path = tmp_path / "some.json"
    # transformers writes this integer for "no limit".
    path.write_text('{"a": [1.5e300, null, "\\u00e9 é"], "b": 1000000000000000019884624838656}')
    assert read_json(path) == {"a": [1.5e300, None, "é é"], "b": int(1e30)}


def test_reads_regular_files_of_bounded_size_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)  # reading it would wait for ever
    for path in (fifo, tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match="is not a regular file"):
            read_json(path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none")
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(files.MOST_BYTES + 1)
    with pytest.raises(ValueError, match="must not have more than 16,777,216 bytes"):
        read_json(large)
    monkeypatch.setattr(files, "MOST_BYTES", 2)
    large.write_text("{}")
    assert read_json(large) == {}


def test_names_of_files_in_a_folder():
    for name in ("a", "a.b", "...", "model 1.safetensors", "权重", "é" * 127):
        assert is_file_name(name)
    wrong = [
        "",
        ".",
        "..",
        "a/b",
        "/a",
        "a/",
        "a\\b",
        "a\nb",
        "a\0",
        "\ud800",
        "a" * 256,
        "é" * 128,
    ]
    for name in (*wrong, None, 7, b"a", ["a"]):
        assert not is_file_name(name)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_is_as_private_as_the_mask_says(tmp_path: Path, mask: int):
    program = "import os, pathlib, sys; os.umask(int(sys.argv[2])); "
    program += "from paddlenlp_codegen_task.files import write_file; "
    program += "write_file(pathlib.Path(sys.argv[1]), b'text')"
    subprocess.run([sys.executable, "-c", program, tmp_path / "new", str(mask)], check=True)
    assert mode(tmp_path / "new") == 0o666 & ~mask
    assert os.listdir(tmp_path) == ["new"]


@pytest.mark.parametrize("before", [0o600, 0o640, 0o664, 0o755])
def test_a_file_that_was_there_keeps_its_mode(tmp_path: Path, before: int):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(before)
    write_file(path, b"new")
    assert (path.read_bytes(), mode(path)) == (b"new", before)
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_link_points_to_is_replaced(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "file", tmp_path / "link"
    link.symlink_to(target)
    for content in (b"one", b"two"):  # to a file that is not there, and to one that is
        write_file(link, content)
        assert target.read_bytes() == content
        assert link.is_symlink()
    assert os.listdir(tmp_path / "folder") == ["file"]


def test_what_is_no_regular_file_is_left_alone(tmp_path: Path):
    fifo, folder, loop = (tmp_path / name for name in ("fifo", "folder", "loop"))
    os.mkfifo(fifo)
    folder.mkdir()
    loop.symlink_to(loop)
    (tmp_path / "link").symlink_to(fifo)
    before = {path.name: path.lstat() for path in tmp_path.iterdir()}
    for path in (fifo, folder, tmp_path / "link", folder / "..", Path("/")):
        with pytest.raises(ValueError, match="is not a regular file"):
            write_file(path, b"text")
    with pytest.raises(OSError, match="symbolic links"):
        write_file(loop, b"text")
    after = {path.name: path.lstat() for path in tmp_path.iterdir()}
    assert after.keys() == before.keys()
    assert all(after[name].st_ino == before[name].st_ino for name in before)


def test_a_device_node_is_left_alone(tmp_path: Path):
    node = tmp_path / "device"
    try:
        os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(1, 7))  # one of this test's own
    except OSError as error:
        pytest.skip(f"no device node can be made here: {error.strerror}")
    with pytest.raises(ValueError, match="is not a regular file"):
        write_file(node, b"text")
    assert stat.S_ISCHR(node.lstat().st_mode)


def test_planted_links_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_bytes(b"mine")
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "guessed")
    (tmp_path / ".file-guessed").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_file(path, b"text")
    assert victim.read_bytes() == b"mine"
    assert not path.exists()


FULL = """
    import pathlib, resource, signal, sys
    from paddlenlp_codegen_task.files import write_file
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # a file has room for so many bytes
    try:
        write_file(pathlib.Path(sys.argv[1]), bytes(5000))
    except OSError as error:
        print(error)
"""


def test_without_room_the_old_file_stays(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL), path], capture_output=True, text=True
    )
    assert "File too large" in done.stdout, done.stderr
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("step", ["fsync", "replace", "fchmod"])
def test_a_failed_step_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(KeyboardInterrupt):
            write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_readers_see_the_old_or_the_new(tmp_path: Path):
    path = tmp_path / "file"
    contents = {bytes([n]) * 50_000 for n in range(4)}
    write_file(path, min(contents))
    threads = [
        threading.Thread(target=lambda c=content: [write_file(path, c) for _ in range(20)])
        for content in contents
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert path.read_bytes() in contents
    assert os.listdir(tmp_path) == ["file"]


def test_names_may_be_as_long_as_the_file_system_has_them(tmp_path: Path):
    for name in ("a" * 255, "é" * 127):
        write_file(tmp_path / name, b"text")
        assert (tmp_path / name).read_bytes() == b"text"
    with pytest.raises(OSError, match="too long"):
        write_file(tmp_path / ("a" * 256), b"text")
    assert len(os.listdir(tmp_path)) == 2


def test_what_a_killed_process_left_is_removed(tmp_path: Path):
    path = tmp_path / "report[1].json"
    files.write_file(path, b"whole")
    draft = tmp_path / f".report[1].json-{'0a' * 8}"
    draft.write_bytes(b"ha")
    names = (f".report[1].json-{'0a' * 7}", f".report1.json-{'0a' * 8}")
    others = [tmp_path / name for name in names]
    for other in others:
        other.write_bytes(b"theirs")
    files.remove_drafts(path)
    assert {one.name for one in tmp_path.iterdir()} == {path.name, *(one.name for one in others)}
    assert path.read_bytes() == b"whole"
