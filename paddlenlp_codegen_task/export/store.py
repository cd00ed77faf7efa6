"""Exports on disk: built in a temporary folder, checked, published by one rename, and verified.

<root>/<key>/            a published export: the graph, the tokenizer, config.json, manifest.json,
                         and checked.json once its large files have been read; a file that the
                         manifest does not list makes it no export, since it might be loaded
<root>/.building-<key>-*  one that is being built; left by a killed process, it is removed later
<root>/.<key>.lock       held while building
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from paddlenlp_codegen_task.checks import shown
from paddlenlp_codegen_task.files import is_file_name, read_json, write_file

MANIFEST = "manifest.json"
MANIFEST_VERSION = 2
CHECKED = "checked.json"
_LARGE = 16 << 20  # bytes of a file whose hash may be checked while it is being loaded

_SHA256 = re.compile("[0-9a-f]{64}")

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EFBIG,
    errno.ENOENT,  # of a folder in /proc, where none can be made
)


class ExportError(RuntimeError):
    """An export cannot be made or used; the message says why in one line."""


def export_key(parts: Mapping[str, str]) -> str:
    """Name of the export that depends on `parts`: weights, graph version, engine, and so on."""
    return hashlib.sha256(json.dumps(dict(parts), sort_keys=True).encode()).hexdigest()[:16]


def find_or_build(
    root: Path,
    parts: Mapping[str, str],
    needed: int,
    build: Callable[[Path], None],
    *,
    large_files: bool = True,
) -> Path:
    """Return the folder of the export for `parts`, building it if it is missing or damaged.

    Safe against other processes doing the same, and against being killed at any point.

    Args:
        root: where exports of one model are kept.
        parts: what the export depends on; recorded in its manifest.
        needed: bytes of disk that building takes, about.
        build: writes the export into an empty folder and checks it.
        large_files: whether to read large files too before trusting an export that is there;
            if not, `check_large_files` is to be called.

    Raises:
        ExportError: the disk is full, or `root` is not writable.
    """
    key = export_key(parts)
    folder = root / key
    # Published by rename, so no lock is needed to read it.
    if _is_intact(folder, parts, large_files):
        return folder
    from filelock import FileLock  # only here: it takes a good part of a fast start

    with _explained(root, needed):
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{key}.lock"):
            if _is_intact(folder, parts, large_files):  # another process has built it meanwhile
                return folder
            _remove_debris(root, key)
            _check_space(root, needed)
            # Unlike mkdtemp's, a folder as private as the user's mask says; and so are its files.
            draft = root / f".building-{key}-{secrets.token_hex(4)}"
            draft.mkdir()
            try:
                build(draft)
                _write_manifest(draft, parts)
                sync(draft)
                damaged = draft.with_name(draft.name + "-damaged")
                if os.path.lexists(folder):
                    folder.rename(damaged)
                draft.rename(folder)
                remove(damaged)
            finally:
                remove(draft)
    return folder


def is_export(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is an export, or is to be one: `read_manifest` says whether it is whole."""
    return os.path.isfile(os.path.join(folder, MANIFEST))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what an export was made from, after checking its files' sizes and SHA-256.

    The content of large files is left to `check_large_files`.

    Raises:
        ExportError: there is no manifest, a file is missing, unreadable or has changed, or there
            is one that the manifest does not list.
    """
    with _readable(folder):
        manifest, files = _parsed_manifest(folder)
        for name, (size, digest) in files.items():
            file = folder / name
            if not file.is_file():
                raise ExportError(f"{folder} lacks {name}; export again")
            if file.stat().st_size != size:
                raise _damaged(file)
            if size < _LARGE:
                _check_content(file, digest)
        # Nothing is loaded whose name begins with a dot; systems keep notes of their own so.
        found = {name for name in os.listdir(folder) if not name.startswith(".")}
        if others := found - files.keys() - {MANIFEST, CHECKED}:
            raise ExportError(
                f"{folder} holds {shown(min(others))}, which is no part of this export: remove it, "
                "or export again"
            )
        return manifest


def check_large_files(folder: Path) -> None:
    """Check the SHA-256 that `read_manifest` left out; it may run while the export is loaded.

    That takes as long as reading the files does, so it is noted in the folder, and not done again
    before one of them is written to.

    Raises:
        ExportError: a file is unreadable or has changed.
    """
    with _readable(folder):
        _, files = _parsed_manifest(folder)
        large = {name: digest for name, (size, digest) in files.items() if size >= _LARGE}
        state = {name: _state(folder / name) for name in large}
        note, content = folder / CHECKED, json.dumps(state).encode()
        if _holds(note, content):
            return
        for name, digest in large.items():
            _check_content(folder / name, digest)
    with suppress(OSError, ValueError):  # an export may be read-only: it is read each time then
        for killed in folder.glob(f".{CHECKED}-*"):  # or being written: then that is done again
            killed.unlink()
        write_file(note, content)


def _holds(file: Path, content: bytes) -> bool:
    try:
        is_so_long = file.is_file() and file.stat().st_size == len(content)
        return is_so_long and file.read_bytes() == content
    except OSError:  # another user's, say: as good as none
        return False


def _state(file: Path) -> list[int]:
    """What changes when a file is written to, replaced, or copied elsewhere."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ExportError(f"cannot read the export {folder}: {error}") from error


def _parsed_manifest(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[int, str]]]:
    """The manifest, and each file's size and SHA-256."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ExportError(
            f"{folder} has no {MANIFEST}: not an export, or not a complete one; from_export and "
            "is_static_model=True take what was exported"
        )
    damaged = ExportError(f"{path} is damaged; export again")
    try:
        manifest = read_json(path)
    except ValueError:
        raise damaged from None
    version, made_from, files = (manifest.get(key) for key in ("version", "made_from", "files"))
    if version != MANIFEST_VERSION:
        raise ExportError(
            f"{path} has version {shown(version)}, not {MANIFEST_VERSION}; export again"
        )
    if not isinstance(made_from, dict) or not isinstance(files, dict):
        raise damaged
    if not all(isinstance(part, str) for part in made_from.values()):
        raise damaged
    if manifest.get("key") != export_key(made_from):
        raise damaged
    if not files:
        raise ExportError(f"{path} lists no files: not an export; export again")
    expected = {}
    for name, entry in files.items():
        match entry:
            case {"size": int(size), "sha256": str(digest)} if _may_list(name):
                if size < 0 or isinstance(size, bool) or not _SHA256.fullmatch(digest):
                    raise damaged
                expected[name] = size, digest
            case _:
                raise damaged
    return manifest, expected


def _may_list(name: str) -> bool:
    """Whether a manifest may list it: a file in the folder, and none of the store's own."""
    return is_file_name(name) and not name.startswith(".") and name not in (MANIFEST, CHECKED)


def _check_content(file: Path, digest: str) -> None:
    if _sha256(file) != digest:
        raise _damaged(file)


def _damaged(file: Path) -> ExportError:
    return ExportError(f"{file} is damaged: it is not what was exported; export again")


def remove(path: Path) -> None:
    """Remove what is there, of whatever kind, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _remove_debris(root: Path, key: str) -> None:
    """Remove what killed builds left; what is being built now is locked. `key`'s lock is held."""
    from filelock import FileLock, Timeout

    for draft in root.glob(".building-*"):
        other = draft.name.split("-")[1]
        if other == key:
            remove(draft)
            continue
        try:
            with FileLock(root / f".{other}.lock", timeout=0):
                remove(draft)
        except Timeout:
            continue


def _is_intact(folder: Path, parts: Mapping[str, str], large_files: bool) -> bool:
    """Whether the export there is whole, and the one for `parts`: folders may be moved about."""
    try:
        if read_manifest(folder)["made_from"] != dict(parts):
            return False
        if large_files:
            check_large_files(folder)
    except ExportError:
        return False
    return True


def _write_manifest(folder: Path, parts: Mapping[str, str]) -> None:
    files = {
        path.name: {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
        if _may_list(path.name)
    }
    manifest = {
        "version": MANIFEST_VERSION,
        "key": export_key(parts),
        "made_from": dict(parts),
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
        return digest.hexdigest()


def sync(folder: Path) -> None:
    """Have the files on disk before the rename that publishes them."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _check_space(root: Path, needed: int) -> None:
    if shutil.disk_usage(root).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def _explained(root: Path, needed: int) -> Iterator[None]:
    """Turn what a disk can do to an export into one line that says what to do about it."""
    try:
        yield
    except OSError as error:
        # Building also reads, elsewhere: that is not for this to explain. A copy names both files.
        places = [Path(n) for n in (error.filename, error.filename2) if isinstance(n, str)]
        if places and not any(p.is_relative_to(root) or root.is_relative_to(p) for p in places):
            raise
        if error.errno in _NO_SPACE:
            raise ExportError(
                f"no space left for an export of about {needed / 1e6:,.0f} MB in {root}: free "
                'some, or pass home_path="a folder on another disk"'
            ) from error
        if error.errno in _NOT_WRITABLE:
            raise ExportError(
                f'cannot write exports to {root} ({error.strerror}); pass home_path="a folder '
                'that can be written"'
            ) from error
        raise
