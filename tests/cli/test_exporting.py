"""`export`: what is deployed is whole, or is not there, and nothing else is lost."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import done, invoke, of_builtin, refused, run

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.export import copying, store

GREEDY: Any = {"decode_strategy": "greedy_search", "max_length": 12}


@pytest.fixture
def command(home_path: Path) -> list[str]:
    return ["export", *of_builtin(home_path)]


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_export_runs_without_its_weights(
    command: list[str], tmp_path: Path, builtin: CodeGenerator
):
    target = tmp_path / "new" / "it is"
    written = done([*command, str(target)])
    size = sum(path.stat().st_size for path in target.iterdir())
    assert written == f"{target}: builtin, onnxruntime, fp32, {size / 1e6:.1f} MB\n"
    assert left_in(target.parent) == ["it is"]
    expected = builtin.generate("def f(x):", **GREEDY)[0][0].text
    with CodeGenerator.from_export(target, num_threads=1) as generator:
        assert generator.generate("def f(x):", **GREEDY)[0][0].text == expected
    arguments = ["--decode-strategy=greedy_search", "--max-length=12", "--no-token-healing"]
    arguments.append("def f(x):")
    there = done(["complete", "--model", str(target), "--num-threads=1", *arguments])
    assert there.rstrip("\n") == expected.rstrip("\n")


def test_json(command: list[str], tmp_path: Path):
    target = tmp_path / "a"
    found = json.loads(done([*command, "--json", str(target)]))
    size = sum(path.stat().st_size for path in target.iterdir())
    assert found == {
        "folder": str(target),
        "model": "builtin",
        "engine": "onnxruntime",
        "precision": "fp32",
        "kv_precision": "fp32",
        "bytes": size,
    }


def test_an_empty_folder_will_do(command: list[str], tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    done([*command, str(tmp_path / "link")])
    assert store.is_export(tmp_path / "a")
    assert (tmp_path / "link").is_symlink()


def test_what_is_there_already_is_not_written_again(command: list[str], tmp_path: Path):
    target = tmp_path / "a"
    done([*command, str(target)])
    before = {path.name: path.stat().st_mtime_ns for path in target.iterdir()}
    result = invoke([*command, str(target)])
    assert result.exit_code == 0
    assert "is this export already" in result.stderr
    assert {path.name: path.stat().st_mtime_ns for path in target.iterdir()} == before


def test_another_export_is_not_overwritten(command: list[str], tmp_path: Path):
    target = tmp_path / "a"
    done([*command, str(target)])
    line = refused([*command, "--precision=int8", str(target)], code=1)
    assert line.startswith(f"{target} is there and is another export: remove it, or name a folder")
    assert store.read_manifest(target)["made_from"]["precision"] == "fp32"


def test_a_damaged_export_is_told(command: list[str], tmp_path: Path):
    target = tmp_path / "a"
    done([*command, str(target)])
    graph = max(target.iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    assert "is damaged" in refused([*command, str(target)], code=1)


@pytest.mark.parametrize("kind", ["folder", "file", "fifo", "link to a file"])
def test_something_else_is_not_overwritten(command: list[str], tmp_path: Path, kind: str):
    target = tmp_path / "a"
    if kind == "folder":
        target.mkdir()
        (target / "mine").write_text("precious", encoding="utf-8")
    elif kind == "file":
        target.write_text("precious", encoding="utf-8")
    elif kind == "fifo":
        os.mkfifo(target)
    else:
        (tmp_path / "b").write_text("precious", encoding="utf-8")
        target.symlink_to("b")
    before = left_in(tmp_path)
    line = refused([*command, "--model=./no/model", str(target)], code=1)  # before it is loaded
    assert line == f"{target} is there and is no export: name a folder that is not there"
    assert left_in(tmp_path) == before
    for path in (target / "mine", target, tmp_path / "b"):
        if path.is_file():
            assert path.read_text(encoding="utf-8") == "precious"


@pytest.mark.parametrize(
    ("target", "message", "code"),
    [
        ("file/a", "cannot write the export to .*file/a: Not a directory", 1),
        ("file/a/b", "cannot write the export to .*: Not a directory", 1),
        ("loop", "cannot write the export to .*|is there and is no export", 1),
        ("x" * 300, "FOLDER: a path may have 4095 bytes", 2),
        ("", "FOLDER must not be empty", 2),
        ("a\0b", "FOLDER: a path cannot hold a null character", 2),
    ],
    ids=["file", "below", "loop", "name", "empty", "null"],
)
def test_places_that_cannot_be(
    command: list[str], tmp_path: Path, target: str, message: str, code: int
):
    (tmp_path / "file").write_text("precious", encoding="utf-8")
    (tmp_path / "loop").symlink_to("loop")
    before = left_in(tmp_path)
    line = refused([*command, f"{tmp_path}/{target}" if target else ""], code=code)
    assert re.search(message, line), line
    assert left_in(tmp_path) == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fails_midway(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    copyfile, copied = shutil.copyfile, []

    def fails(source: Path, target: Path) -> None:
        copied.append(target)
        copyfile(source, target)
        if len(copied) == 3:
            raise OSError(number, os.strerror(number), str(target))

    monkeypatch.setattr(copying.shutil, "copyfile", fails)
    line = refused([*command, str(tmp_path / "a")], code=1)
    assert line == f"cannot write the export to {tmp_path / 'a'}: {os.strerror(number)}"
    assert left_in(tmp_path) == []


@pytest.mark.usefixtures("builtin")  # so that nothing is to be exported first
def test_a_file_that_may_not_grow(command: list[str], tmp_path: Path):
    """The system itself ends a file midway."""

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    ran = run(*command, str(tmp_path / "a"), preexec_fn=bound)
    assert (ran.returncode, ran.stdout) == (1, "")
    expected = f"cannot write the export to {tmp_path / 'a'}: File too large"
    assert ran.stderr == f"paddlenlp-codegen: {expected}\n"
    assert left_in(tmp_path) == []


def test_a_disk_that_is_too_small(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(copying.shutil, "disk_usage", lambda _: usage)
    line = refused([*command, str(tmp_path / "a")], code=1)
    assert line.startswith("the export has ")
    assert line.endswith(f"bytes, and {tmp_path} 1,000 left")
    assert left_in(tmp_path) == []


def test_ctrl_c_midway(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(copying.shutil, "copyfile", interrupted)
    result = invoke([*command, str(tmp_path / "a")])
    assert (result.exit_code, result.stdout) == (130, "")
    assert left_in(tmp_path) == []


def test_what_killed_copies_left_is_removed(
    command: list[str], tmp_path: Path, builtin: CodeGenerator
):
    code = f"""
import os, signal
from pathlib import Path
from paddlenlp_codegen_task.export import copying
copying.shutil.copyfile = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
copying.copy_export(Path({str(builtin.folder)!r}), Path({str(tmp_path / "a")!r}))
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    [debris] = left_in(tmp_path)
    assert debris.startswith(".a.copying-")
    (tmp_path / ".another.copying-1").mkdir()  # of another export, or somebody's own
    done([*command, str(tmp_path / "a")])
    assert left_in(tmp_path) == [".another.copying-1", "a"]


def test_what_is_being_copied_is_left_alone(command: list[str], tmp_path: Path):
    other = tmp_path / ".a.copying-1"
    other.mkdir()
    descriptor = os.open(other, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        done([*command, str(tmp_path / "a")])
    finally:
        os.close(descriptor)
    assert left_in(tmp_path) == [".a.copying-1", "a"]


def test_who_comes_second_overwrites_nothing(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Another process makes something at the place while this one copies."""
    sync = store.sync

    def meanwhile(folder: Path) -> None:
        sync(folder)
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "mine").write_text("precious", encoding="utf-8")

    monkeypatch.setattr(store, "sync", meanwhile)
    line = refused([*command, str(tmp_path / "a")], code=1)
    assert line.startswith(f"cannot write the export to {tmp_path / 'a'}: ")
    assert left_in(tmp_path) == ["a"]
    assert left_in(tmp_path / "a") == ["mine"]
