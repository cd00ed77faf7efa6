"""Exports on disk: published whole or not at all, verified, rebuilt, and never left half-done."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from checkpoints import TINY
from filelock import FileLock
from random_models import spread_tensors, write_model

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.export import store
from paddlenlp_codegen_task.export.store import ExportError, export_key, find_or_build

PARTS = {"weights": "w", "engine": "paddle", "paddle": "3"}
KEY = export_key(PARTS)
CONFIG = dataclasses.replace(TINY, vocab_size=257)
PROMPT = "def f(x):"


def build(folder: Path) -> None:
    (folder / "graph").write_bytes(b"graph" * 1000)
    (folder / "config.json").write_text("{}", encoding="utf-8")


def refuse(folder: Path) -> None:
    raise AssertionError(f"built again in {folder}")


def assert_whole(root: Path) -> None:
    """The export is there, and nothing else but perhaps its lock."""
    assert (root / KEY / "graph").read_bytes() == b"graph" * 1000
    assert store.read_manifest(root / KEY)["made_from"] == PARTS
    assert_no_debris(root)


def assert_no_debris(root: Path, exports: int = 1) -> None:
    left = [path.name for path in root.iterdir() if not path.name.endswith(".lock")]
    assert len(left) == exports, left
    assert not any(name.startswith(".") for name in left), left


def one_line(raised: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(raised.value)
    assert message
    assert "\n" not in message
    return message


def flip_bit(path: Path, at: int = -3) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


damages = pytest.mark.parametrize("damage", [truncate, flip_bit, Path.unlink])


# Building and publishing


def test_build_then_reuse(tmp_path: Path) -> None:
    root = tmp_path / "not" / "there"
    assert find_or_build(root, PARTS, 0, build) == root / KEY
    assert_whole(root)
    assert find_or_build(root, PARTS, 0, refuse) == root / KEY


def test_nothing_is_there_before_it_is_published(tmp_path: Path) -> None:
    def look(folder: Path) -> None:
        assert not (tmp_path / KEY).exists()
        assert folder.parent == tmp_path  # so that the rename stays within one file system
        build(folder)

    find_or_build(tmp_path, PARTS, 0, look)
    assert_whole(tmp_path)


@pytest.mark.parametrize("part", PARTS)
def test_other_parts_are_another_export(tmp_path: Path, part: str) -> None:
    other = {**PARTS, part: "other"}
    find_or_build(tmp_path, PARTS, 0, build)
    find_or_build(tmp_path, other, 0, build)
    assert_no_debris(tmp_path, exports=2)
    assert export_key(dict(reversed(PARTS.items()))) == KEY


def test_manifest(tmp_path: Path) -> None:
    folder = find_or_build(tmp_path, PARTS, 0, build)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert set(manifest["files"]) == {"graph", "config.json"}
    assert manifest["files"]["graph"]["size"] == 5000
    assert store.read_manifest(folder) == manifest


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        build(folder)
        raise ValueError("not this model")

    with pytest.raises(ValueError, match="not this model"):
        find_or_build(tmp_path, PARTS, 0, fail)
    assert_no_debris(tmp_path, exports=0)
    find_or_build(tmp_path, PARTS, 0, build)
    assert_whole(tmp_path)


# Damage


@damages
@pytest.mark.parametrize("file", ["graph", "manifest.json"])
def test_damaged_is_rebuilt(tmp_path: Path, damage: Callable[[Path], None], file: str) -> None:
    folder = find_or_build(tmp_path, PARTS, 0, build)
    damage(folder / file)
    with pytest.raises(ExportError, match=r"damaged|lacks graph|no manifest") as raised:
        store.read_manifest(folder)
    assert str(folder) in one_line(raised)
    assert find_or_build(tmp_path, PARTS, 0, build) == folder
    assert_whole(tmp_path)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose content is read; every file counts as large."""
    names: list[str] = []
    sha256 = store._sha256

    def noted(path: Path) -> str:
        names.append(path.name)
        return sha256(path)

    monkeypatch.setattr(store, "_LARGE", 0)
    monkeypatch.setattr(store, "_sha256", noted)
    return names


def test_large_files_are_read_once(tmp_path: Path, hashed: list[str]) -> None:
    folder = find_or_build(tmp_path, PARTS, 0, build)
    hashed.clear()
    store.read_manifest(folder)
    assert not hashed
    store.check_large_files(folder)
    assert sorted(hashed) == ["config.json", "graph"]
    store.check_large_files(folder)
    assert find_or_build(tmp_path, PARTS, 0, refuse) == folder
    assert len(hashed) == 2
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)  # with its note, of another place
    store.check_large_files(copy)
    assert len(hashed) == 4


@pytest.mark.parametrize("keep_time", [False, True])
def test_a_large_file_that_changes_is_read_again(
    tmp_path: Path, hashed: list[str], keep_time: bool
) -> None:
    folder = find_or_build(tmp_path, PARTS, 0, build)
    store.check_large_files(folder)
    status = (folder / "graph").stat()
    (folder / "graph").write_bytes(b"GRAPH" * 1000)  # as many bytes
    if keep_time:
        os.utime(folder / "graph", ns=(status.st_atime_ns, status.st_mtime_ns))
    store.read_manifest(folder)
    with pytest.raises(ExportError, match="graph is damaged"):
        store.check_large_files(folder)
    assert find_or_build(tmp_path, PARTS, 0, refuse, large_files=False) == folder
    assert find_or_build(tmp_path, PARTS, 0, build) == folder
    assert_whole(tmp_path)


def test_a_read_only_export_is_read_each_time(
    tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = find_or_build(tmp_path, PARTS, 0, build)

    def refuse_to_write(path: Path, _: bytes) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(store, "write_file", refuse_to_write)
    hashed.clear()
    store.check_large_files(folder)
    store.check_large_files(folder)
    assert len(hashed) == 4
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "graph",
        "manifest.json",
    ]


def test_half_written_folders_are_ignored_and_cleaned(tmp_path: Path) -> None:
    for name in (f".building-{KEY}-abc", f".building-{KEY}-def-damaged", ".building-other-abc"):
        build_in = tmp_path / name
        build_in.mkdir()
        build(build_in)
        (build_in / "sub").mkdir()
    elsewhere = tmp_path / ".building-another0key-abc"
    elsewhere.mkdir()
    with FileLock(tmp_path / ".another0key.lock"):  # being built just now
        find_or_build(tmp_path, PARTS, 0, build)
    assert elsewhere.is_dir()
    elsewhere.rmdir()
    assert_whole(tmp_path)


def test_an_unreadable_checkpoint_is_not_called_an_unwritable_home(tmp_path: Path) -> None:
    def read_elsewhere(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/model.safetensors")

    with pytest.raises(PermissionError, match=r"model\.safetensors"):
        find_or_build(tmp_path, PARTS, 0, read_elsewhere)
    assert not list(tmp_path.glob(".building-*"))


# Several processes, and killed ones

WORKER = """
import sys, time
from pathlib import Path
from paddlenlp_codegen_task.export import store
from test_store import PARTS, build

root, point = Path(sys.argv[1]), sys.argv[2]

def hang(*_):
    print("there", flush=True)
    time.sleep(600)

def build_at(folder):
    if point == "start":
        hang()
    if point == "half":
        (folder / "graph").write_bytes(b"graph")
        hang()
    build(folder)
    with open(root.parent / "builds", "a") as file:
        print(folder, file=file)
    time.sleep(0.3)

if point == "manifest":
    store._write_manifest = hang
if point == "sync":
    store.sync = hang
if point == "rename":
    rename = Path.rename
    def rename_damaged_only(self, target):
        rename(self, target) if self.name == store.export_key(PARTS) else hang()
    Path.rename = rename_damaged_only
print(store.find_or_build(root, PARTS, 0, build_at), flush=True)
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    tests = Path(__file__).parents[1]
    search = [str(tests.parent), str(tests), str(Path(__file__).parent)]
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
    )


def kill_when_there(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    reached = any(line == "there\n" for line in process.stdout)
    process.send_signal(signal.SIGKILL)
    errors = process.communicate()[1]
    assert reached, errors


def test_processes_at_once_build_once(tmp_path: Path) -> None:
    root = tmp_path / "root"
    workers = [start(WORKER, root, "none") for _ in range(3)]
    for worker in workers:
        output, errors = worker.communicate(timeout=120)
        assert output.strip() == str(root / KEY), errors
    assert len((tmp_path / "builds").read_text(encoding="utf-8").splitlines()) == 1
    assert_whole(root)


@pytest.mark.parametrize("point", ["start", "half", "manifest", "sync", "rename"])
def test_killed_while_building(tmp_path: Path, point: str) -> None:
    root = tmp_path / "root"
    if point == "rename":  # after the damaged one has gone, before the new one has come
        truncate(find_or_build(root, PARTS, 0, build) / "graph")
    kill_when_there(start(WORKER, root, point))
    assert not (root / KEY).exists()
    assert list(root.glob(f".building-{KEY}-*"))
    find_or_build(root, PARTS, 0, build)
    assert_whole(root)


# What a disk can do


def test_too_little_space_is_told_before_building(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as raised:
        find_or_build(tmp_path, PARTS, 2**60, refuse)
    message = one_line(raised)
    assert "no space left" in message
    assert str(tmp_path) in message
    assert "home_path" in message
    assert_no_debris(tmp_path, exports=0)


def test_disk_full_while_building(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        build(folder)
        (folder / "parameters").symlink_to("/dev/full")  # every write to it says ENOSPC
        (folder / "parameters").write_bytes(bytes(10_000))

    with pytest.raises(ExportError, match="no space left") as raised:
        find_or_build(tmp_path, PARTS, 0, fill)
    one_line(raised)
    assert_no_debris(tmp_path, exports=0)


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.ENOSPC])
def test_disk_full_while_publishing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(ExportError, match="no space left") as raised:
            find_or_build(tmp_path, PARTS, 0, build)
    one_line(raised)
    assert_no_debris(tmp_path, exports=0)


@contextmanager
def without_root() -> Iterator[None]:
    """Run as a user whom file permissions hold back; the superuser may write anywhere."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that any user can enter, other than pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("root", ["", "taskflow/model"])
def test_read_only_home(public: Path, root: str) -> None:
    public.chmod(0o555)
    with without_root(), pytest.raises(ExportError) as raised:
        find_or_build(public / root, PARTS, 0, refuse)
    message = one_line(raised)
    assert "cannot write exports" in message
    assert "home_path" in message
    assert not list(public.iterdir())


def test_an_export_in_a_read_only_home_is_usable(public: Path) -> None:
    folder = find_or_build(public, PARTS, 0, build)
    (public / f".{KEY}.lock").unlink(missing_ok=True)
    public.chmod(0o555)
    with without_root():
        assert find_or_build(public, PARTS, 0, refuse) == folder
        with pytest.raises(PermissionError):
            (public / "something").touch()


def test_home_that_no_one_can_write() -> None:
    with pytest.raises(ExportError, match="cannot write exports to /sys/home"):
        find_or_build(Path("/sys/home"), PARTS, 0, refuse)


def test_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="cannot write exports") as raised:
        find_or_build(tmp_path / "file" / "model", PARTS, 0, refuse)
    one_line(raised)


# The same with real exports


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("small"), CONFIG, spread_tensors(CONFIG))


def open_generator(folder: Path, home_path: Path, *, static_mode: bool = True) -> CodeGenerator:
    return CodeGenerator.from_pretrained(
        folder, home_path=home_path, device="cpu", num_threads=1, static_mode=static_mode
    )


def complete(generator: CodeGenerator) -> str:
    (completion,) = generator.generate(
        [PROMPT], decode_strategy="greedy_search", max_length=12, truncation=None
    )[0]
    return completion.text


@pytest.fixture(scope="module")
def expected(checkpoint: Path, home_path: Path) -> str:
    with open_generator(checkpoint, home_path, static_mode=False) as generator:
        return complete(generator)


@damages
def test_damaged_export(
    checkpoint: Path, expected: str, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    with open_generator(checkpoint, tmp_path) as generator:
        folder = generator.folder
    damage(folder / "model.pdiparams")
    with pytest.raises(ExportError, match=r"model\.pdiparams") as raised:
        CodeGenerator.from_export(folder)
    assert "export again" in one_line(raised)
    with open_generator(checkpoint, tmp_path) as generator:
        assert generator.folder == folder
        assert complete(generator) == expected
    assert_no_debris(folder.parent)
    with CodeGenerator.from_export(folder) as generator:
        assert complete(generator) == expected


@pytest.mark.parametrize(
    ("part", "value"),
    [("engine", "tensorrt"), ("paddle", "1.8.5"), ("graph", "0"), ("precision", "int3")],
)
def test_export_for_something_else(checkpoint: Path, tmp_path: Path, part: str, value: str) -> None:
    with open_generator(checkpoint, tmp_path) as generator:
        folder = generator.folder
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["made_from"][part] = value
    manifest["key"] = export_key(manifest["made_from"])
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises((ExportError, ValueError)) as raised:
        CodeGenerator.from_export(folder)
    message = one_line(raised)
    assert part in message
    assert value in message


def test_precision_of_an_export(checkpoint: Path, home_path: Path) -> None:
    with open_generator(checkpoint, home_path) as generator:
        folder = generator.folder
    with pytest.raises(ValueError, match=r"precision: .* was exported for 'fp32', not 'fp16'"):
        CodeGenerator.from_export(folder, precision="fp16")


def wrong(value: float) -> Callable[..., Iterator[tuple[str, np.ndarray]]]:
    from paddlenlp_codegen_task.export import paddle_graph

    parameters = paddle_graph.parameters

    def changed(weights: object) -> Iterator[tuple[str, np.ndarray]]:
        for name, array in parameters(weights):
            if name == "h.001.w_out":
                array = array.copy()
                array[:, 0] += value
            yield name, array

    return changed


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_an_export_that_is_not_the_model_is_refused(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    from paddlenlp_codegen_task.export import paddle_graph

    monkeypatch.setattr(paddle_graph, "parameters", wrong(value))
    with pytest.raises(ExportError, match="is not the model: its logits are off") as raised:
        open_generator(checkpoint, tmp_path)
    one_line(raised)
    assert_no_debris(tmp_path / "taskflow" / "code_generation" / checkpoint.name, exports=0)


@pytest.mark.parametrize("file", ["model.pdiparams", "vocab.json"])
def test_disk_full_while_exporting(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    mkdir = Path.mkdir

    def on_a_full_disk(folder: Path, *arguments: object, **options: object) -> None:
        mkdir(folder, *arguments, **options)
        if folder.name.startswith(".building-"):
            (folder / file).symlink_to("/dev/full")

    monkeypatch.setattr(Path, "mkdir", on_a_full_disk)
    with pytest.raises(ExportError, match="no space left") as raised:
        open_generator(checkpoint, tmp_path)
    one_line(raised)
    assert_no_debris(tmp_path / "taskflow" / "code_generation" / checkpoint.name, exports=0)


EXPORTER = """
import logging, sys, time
import paddlenlp_codegen_task
from pathlib import Path
from paddlenlp_codegen_task.export import paddle_graph
from test_store import open_generator

class Slow:
    def __init__(self, file):
        self.file = file
    def write(self, content):
        self.file.write(content)
        self.file.flush()
        if sys.argv[3] == "hang":
            print("there", flush=True)
            time.sleep(600)
        time.sleep(0.02)

save = paddle_graph._save_parameters
paddle_graph._save_parameters = lambda file, *rest: save(Slow(file), *rest)
logging.basicConfig(level=logging.INFO)
with open_generator(Path(sys.argv[1]), Path(sys.argv[2])) as generator:
    print(generator.folder, flush=True)
"""


def test_exporting_processes(checkpoint: Path, expected: str, tmp_path: Path) -> None:
    kill_when_there(start(EXPORTER, checkpoint, tmp_path, "hang"))
    root = tmp_path / "taskflow" / "code_generation" / checkpoint.name
    (draft,) = root.glob(".building-*")
    assert (draft / "model.pdiparams").stat().st_size > 0

    # Two at once afterwards: one builds, both get it, and the killed one's debris goes.
    exporters = [start(EXPORTER, checkpoint, tmp_path, "slow") for _ in range(2)]
    outputs = [exporter.communicate(timeout=120) for exporter in exporters]
    folders = {output.strip() for output, _ in outputs}
    assert len(folders) == 1, outputs
    assert sum(errors.count("exporting") for _, errors in outputs) == 1, outputs
    assert_no_debris(root)
    with open_generator(checkpoint, tmp_path) as generator:
        assert str(generator.folder) in folders
        assert complete(generator) == expected
