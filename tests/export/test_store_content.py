"""What an export may hold and be made from; how private it is; and disks that fill up."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from random_models import spread_tensors, write_model
from test_store import (
    CONFIG,
    KEY,
    PARTS,
    assert_no_debris,
    assert_whole,
    build,
    complete,
    one_line,
    open_generator,
    refuse,
    start,
)

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.export import store
from paddlenlp_codegen_task.export.store import ExportError, export_key, find_or_build
from paddlenlp_codegen_task.model.tokenizer import Tokenizer

# Manifests

ENTRY = {"size": 5000, "sha256": "0" * 64}
VALID = {"version": 2, "key": KEY, "made_from": PARTS, "files": {"graph": ENTRY}}
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    10**400,
    1.5,
    "",
    "a\nb",
    "\ud800",
    [],
    [[]],
    {},
    {"a": 1},
)


def with_file(name: str, **changes: Any) -> dict[str, Any]:
    return {**VALID, "files": {name: {**ENTRY, **changes}}}


MANIFESTS = [
    *({**VALID, name: value} for name in VALID for value in VALUES),
    *({key: value for key, value in VALID.items() if key != name} for name in VALID),
    *({**VALID, "files": {"graph": value}} for value in VALUES),
    *(with_file("graph", size=value) for value in VALUES),
    *(with_file("graph", sha256=value) for value in (*VALUES, "g" * 64, "0" * 63, "A" * 64)),
    *(
        with_file(name)
        for name in ("", ".", "..", "../graph", "/graph", "a/b", "a\nb", "a\0b", "\ud800", ".a")
    ),
    *(with_file(name) for name in ("manifest.json", "checked.json", "n" * 256, "é" * 128, "none")),
    {**VALID, "made_from": {**PARTS, "engine": ["paddle"]}},
    {**VALID, "made_from": {**PARTS, "engine": "onnxruntime"}},
    {**VALID, "version": 1},
]  # fmt: skip
TEXTS = [
    b"",
    b"\0" * 100,
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"version": 1e999}',
    b'{"version": NaN}',
    b'{"version": ' + b"9" * 5000 + b"}",
    b'{"version": "a\nb"}',
    b" " * (2**24 + 1),
    *(json.dumps(manifest).encode() for manifest in MANIFESTS),
]


@pytest.mark.parametrize("content", TEXTS, ids=range(len(TEXTS)))
def test_a_wrong_manifest_is_one_line_and_a_reason_to_build_again(content: bytes, tmp_path: Path):
    folder = find_or_build(tmp_path, PARTS, 0, build)
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ExportError, match=r"manifest|lacks|damaged") as raised:
        store.read_manifest(folder)
    assert str(folder) in one_line(raised)
    assert len(one_line(raised)) < 800
    find_or_build(tmp_path, PARTS, 0, build)
    assert_whole(tmp_path)


def test_a_manifest_that_is_no_regular_file(tmp_path: Path):
    folder = find_or_build(tmp_path, PARTS, 0, build)
    manifest = folder / "manifest.json"
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink(path, path)):
        manifest.unlink()
        make(manifest)
        with pytest.raises(ExportError, match=r"no manifest\.json"):
            store.read_manifest(folder)
        find_or_build(tmp_path, PARTS, 0, build)
        assert_whole(tmp_path)


def test_an_export_of_other_parts_in_its_place_is_built_again(tmp_path: Path):
    other = {**PARTS, "engine": "onnxruntime"}
    shutil.move(find_or_build(tmp_path, other, 0, build), tmp_path / KEY)
    find_or_build(tmp_path, PARTS, 0, build)
    assert_whole(tmp_path)


# Files


@pytest.mark.parametrize("name", ["tokenizer.json", "model.onnx.data", "a\nb", "a" * 255, "folder"])
@pytest.mark.parametrize("large_files", [True, False])
def test_a_file_that_the_manifest_does_not_list(name: str, large_files: bool, tmp_path: Path):
    folder = find_or_build(tmp_path, PARTS, 0, build)
    (folder / name).mkdir() if name == "folder" else (folder / name).write_text("{}")
    with pytest.raises(
        ExportError, match="which is no part of this export: remove it, or"
    ) as raised:
        store.read_manifest(folder)
    assert len(one_line(raised)) < 600
    find_or_build(tmp_path, PARTS, 0, build, large_files=large_files)
    assert_whole(tmp_path)
    assert sorted(os.listdir(folder)) == ["config.json", "graph", "manifest.json"] + [
        "checked.json" for _ in range(large_files and (folder / "checked.json").exists())
    ]


def test_hidden_files_are_nobodys(tmp_path: Path):
    folder = find_or_build(tmp_path, PARTS, 0, build)
    (folder / ".nfs0001").touch()
    (folder / "..data").mkdir()
    assert find_or_build(tmp_path, PARTS, 0, refuse) == folder


def test_files_may_be_links_as_where_folders_are_mounted(tmp_path: Path):
    folder = find_or_build(tmp_path / "store", PARTS, 0, build)
    mounted = tmp_path / "mounted"
    shutil.copytree(folder, mounted / "..data")
    for name in os.listdir(folder):
        (mounted / name).symlink_to(f"..data/{name}")
    assert store.read_manifest(mounted) == store.read_manifest(folder)


@pytest.mark.parametrize(
    "plant",
    {
        "file": Path.touch,
        "FIFO": os.mkfifo,
        "dangling link": lambda path: path.symlink_to("nowhere"),
        "loop": lambda path: path.symlink_to(path),
        "link to a folder": lambda path: path.symlink_to(path.parent.parent),
        "empty folder": Path.mkdir,
    }.items(),
    ids=lambda case: case[0],
)
def test_whatever_is_in_an_exports_place_gives_way(
    plant: tuple[str, Callable[[Path], None]], tmp_path: Path
):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "mine").touch()
    plant[1](root / KEY)
    plant[1](root / f".building-{KEY}-left")
    find_or_build(root, PARTS, 0, build)
    assert_whole(root)
    assert not (root / KEY).is_symlink()
    assert (tmp_path / "mine").exists()


# The note of what was checked


@pytest.fixture
def export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An export all of whose files count as large."""
    monkeypatch.setattr(store, "_LARGE", 0)
    return find_or_build(tmp_path, PARTS, 0, build)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_note_that_cannot_be_written_leaves_nothing(
    export: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = names(export)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        store.check_large_files(export)
    assert names(export) == before
    store.check_large_files(export)
    assert names(export) == sorted([*before, "checked.json"])


def test_what_a_killed_process_left_of_a_note_goes(export: Path):
    (export / ".checked.json-0123456789abcdef").touch()
    (export / ".checked.json-4711").touch()
    store.check_large_files(export)
    assert names(export) == ["checked.json", "config.json", "graph", "manifest.json"]


@pytest.mark.parametrize(
    "content", ["", "{}", "[" * 100_000, '{"graph": [5000, 1e999]}', "x" * 10**7]
)
def test_a_wrong_note_is_written_again(export: Path, content: str):
    (export / "checked.json").write_text(content)
    store.check_large_files(export)
    noted = (export / "checked.json").read_text()
    assert json.loads(noted).keys() == {"config.json", "graph"}
    (export / "graph").write_bytes(b"GRAPH" * 1000)
    with pytest.raises(ExportError, match="graph is damaged"):
        store.check_large_files(export)


@pytest.mark.parametrize("plant", [os.mkfifo, os.mkdir, lambda path: os.symlink(path, path)])
def test_a_note_that_is_no_regular_file_is_none(export: Path, plant: Callable[[Path], None]):
    plant(export / "checked.json")
    store.check_large_files(export)
    assert names(export) == ["checked.json", "config.json", "graph", "manifest.json"]


# Permissions

MASKS = (0o022, 0o077, 0o027, 0o002)
PRIVATE = """
    import os, sys
    from pathlib import Path
    from test_store import PARTS, build, open_generator
    from paddlenlp_codegen_task.export import store
    store._LARGE = 0
    checkpoint, home, *masks = sys.argv[1:]
    for mask in masks:
        os.umask(int(mask))
        with open_generator(Path(checkpoint), Path(home, "model", mask)) as generator:
            folder = generator.folder
        for folder in (folder, store.find_or_build(Path(home, "store", mask), PARTS, 0, build)):
            store.check_large_files(folder)
            print(mask, folder)
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("small"), CONFIG, spread_tensors(CONFIG))


def test_an_export_is_as_private_as_the_mask_says(checkpoint: Path, tmp_path: Path):
    process = start(textwrap.dedent(PRIVATE), checkpoint, tmp_path / "home", *MASKS)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    folders = [line.split(" ", 1) for line in output.splitlines()]
    assert [int(mask) for mask, _ in folders] == [mask for mask in MASKS for _ in range(2)]
    for given, path in folders:
        folder, mask = Path(path), int(given)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~mask
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
        assert set(modes.values()) == {0o666 & ~mask}, (folder, modes)
        assert "checked.json" in modes


# Disks and homes


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_fills_while_tokenizer_files_are_copied(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    def sendfile(target: int, source: int, *_: object) -> int:
        # What shutil makes of it names the checkpoint's file first, and the export's second.
        os.write(target, os.read(source, 1))
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "sendfile", sendfile)
    with pytest.raises(ExportError, match=r"no space left|cannot write exports") as raised:
        open_generator(checkpoint, tmp_path)
    message = one_line(raised)
    assert str(tmp_path) in message
    assert ("no space left" in message) == (number != errno.EFBIG)
    assert_no_debris(tmp_path / "taskflow" / "code_generation" / checkpoint.name, exports=0)


LIMITED = """
    import resource, signal, sys
    from pathlib import Path
    from test_store import open_generator
    from paddlenlp_codegen_task.export.store import ExportError
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for room in range(0, 70_000, 6_500):  # bytes that a file may have
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        try:
            open_generator(Path(sys.argv[1]), Path(sys.argv[2]))
        except ExportError as error:
            message = str(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
        print(room, message, flush=True)
"""


def test_whatever_room_a_file_has_it_is_one_line_and_no_debris(checkpoint: Path, tmp_path: Path):
    process = start(textwrap.dedent(LIMITED), checkpoint, tmp_path)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    lines = output.splitlines()
    assert len(lines) == 11, output
    assert all("cannot write exports to" in line and "too large" in line for line in lines), output
    assert_no_debris(tmp_path / "taskflow" / "code_generation" / checkpoint.name, exports=0)
    with open_generator(checkpoint, tmp_path) as generator:
        assert complete(generator)


ON_A_SMALL_DISK = """
    import subprocess, sys
    from pathlib import Path
    from paddlenlp_codegen_task.export import store
    from test_store import open_generator
    disk, sizes = Path(sys.argv[2]), map(int, sys.argv[3:])
    store._check_space = lambda *_: None  # as if another process took the space meanwhile
    for size in sizes:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", disk], check=True)
        try:
            with open_generator(Path(sys.argv[1]), disk):
                print(size, "exported", flush=True)
        except store.ExportError as error:
            left = [one.name for one in disk.rglob("*") if one.name.startswith(".building")]
            print(size, left, error, flush=True)
        finally:
            subprocess.run(["umount", disk], check=True)
"""


def test_small_disks(checkpoint: Path, tmp_path: Path):
    namespace = ["unshare", "--mount", "--map-root-user"]
    probe = [*namespace, "mount", "-t", "tmpfs", "none", str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    tests = Path(__file__).parents[1]
    search = os.pathsep.join(map(str, (tests.parent, tests, Path(__file__).parent)))
    done = subprocess.run(
        [*namespace, sys.executable, "-c", textwrap.dedent(ON_A_SMALL_DISK), checkpoint, tmp_path]
        + [str(size) for size in (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 1024)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": search},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 14, done.stdout
    assert lines[-1] == "1024 exported"
    for line in lines:
        assert line.endswith("exported") or "[] no space left for an export" in line, done.stdout


@pytest.mark.parametrize("below", ["", "a/b"])
def test_a_home_that_is_a_loop_of_links(below: str, checkpoint: Path, tmp_path: Path):
    loop = tmp_path / "loop"
    loop.symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(loop)
    with pytest.raises(ExportError, match="cannot write exports to") as raised:
        find_or_build(loop / below, PARTS, 0, refuse)
    one_line(raised)
    with pytest.raises(ExportError, match="cannot write exports to") as raised:
        open_generator(checkpoint, loop / below)
    one_line(raised)


def test_a_lock_that_cannot_be_one(tmp_path: Path):
    (tmp_path / f".{KEY}.lock").mkdir()
    with pytest.raises(ExportError, match="cannot write exports to") as raised:
        find_or_build(tmp_path, PARTS, 0, refuse)
    one_line(raised)


# The same with a real export


def test_a_stray_tokenizer_is_never_used(checkpoint: Path, builtin: CodeGenerator, tmp_path: Path):
    with open_generator(checkpoint, tmp_path) as generator:
        folder, expected = generator.folder, complete(generator)
    # Other tokens, in the file that is read before all others.
    builtin.tokenizer._backend.save(str(folder / "tokenizer.json"))
    assert Tokenizer.from_folder(folder).vocab_size == builtin.tokenizer.vocab_size
    with pytest.raises(ExportError, match=r"holds 'tokenizer\.json', which is no part of this"):
        CodeGenerator.from_export(folder, device="cpu")
    with open_generator(checkpoint, tmp_path) as generator:
        assert generator.folder == folder
        assert complete(generator) == expected
    with CodeGenerator.from_export(folder, device="cpu") as generator:
        assert complete(generator) == expected


def test_made_from_must_be_what_the_key_is_of(checkpoint: Path, tmp_path: Path):
    with open_generator(checkpoint, tmp_path) as generator:
        folder = generator.folder
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    assert manifest["key"] == folder.name == export_key(manifest["made_from"])
    manifest["made_from"]["weights"] = "of another model"
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ExportError, match=r"manifest\.json is damaged; export again"):
        CodeGenerator.from_export(folder)
    with open_generator(checkpoint, tmp_path) as generator:
        assert generator.folder == folder
    assert json.loads(path.read_text(encoding="utf-8"))["key"] == folder.name
