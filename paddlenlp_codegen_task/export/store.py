"""Exports on disk: built in a temporary folder, checked, published by one rename, and verified.

<root>/<key>/            a published export: the graph, the tokenizer, config.json, manifest.json
<root>/.building-<key>-*  one that is being built; left by a killed process, it is removed later
<root>/.<key>.lock       held while building
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1

_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)


class ExportError(RuntimeError):
    """An export cannot be made or used; the message says why in one line."""


def export_key(parts: Mapping[str, str]) -> str:
    """Name of the export that depends on `parts`: weights, graph version, engine, and so on."""
    return hashlib.sha256(json.dumps(dict(parts), sort_keys=True).encode()).hexdigest()[:16]


def find_or_build(
    root: Path, parts: Mapping[str, str], needed: int, build: Callable[[Path], None]
) -> Path:
    """Return the folder of the export for `parts`, building it if it is missing or damaged.

    Safe against other processes doing the same, and against being killed at any point.

    Args:
        root: where exports of one model are kept.
        parts: what the export depends on; recorded in its manifest.
        needed: bytes of disk that building takes, about.
        build: writes the export into an empty folder and checks it.

    Raises:
        ExportError: the disk is full, or `root` is not writable.
    """
    key = export_key(parts)
    folder = root / key
    if _is_intact(folder):  # published by rename, so no lock is needed to read it
        return folder
    with _explained(root, needed):
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{key}.lock"):
            if _is_intact(folder):  # another process has built it meanwhile
                return folder
            _remove_debris(root, key)
            _check_space(root, needed)
            draft = Path(tempfile.mkdtemp(prefix=f".building-{key}-", dir=root))
            try:
                build(draft)
                _write_manifest(draft, parts)
                _sync(draft)
                draft.chmod(0o755)  # mkdtemp keeps others out, and so may the user's mask
                for path in draft.iterdir():
                    path.chmod(0o644)
                damaged = draft.with_name(draft.name + "-damaged")
                if folder.exists():
                    folder.rename(damaged)
                draft.rename(folder)
                shutil.rmtree(damaged, ignore_errors=True)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
    return folder


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what an export was made from, after checking every file's size and SHA-256.

    Raises:
        ExportError: there is no manifest, or a file is missing, unreadable or has changed.
    """
    try:
        return _checked_manifest(folder)
    except OSError as error:
        raise ExportError(f"cannot read the export {folder}: {error}") from error


def _checked_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise ExportError(f"{folder} has no {MANIFEST}: not an export, or not a complete one")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version, files = manifest["version"], manifest["files"]
        expected = {str(name): (int(of["size"]), str(of["sha256"])) for name, of in files.items()}
        manifest["made_from"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ExportError(f"{path} is damaged; export again") from None
    if version != MANIFEST_VERSION:
        raise ExportError(f"{path} has version {version}, not {MANIFEST_VERSION}; export again")
    for name, (size, digest) in expected.items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise ExportError(f"{folder} lacks {name}; export again")
        if file.stat().st_size != size or _sha256(file) != digest:
            raise ExportError(f"{file} is damaged: it is not what was exported; export again")
    return dict(manifest)


def _remove_debris(root: Path, key: str) -> None:
    """Remove what killed builds left; what is being built now is locked. `key`'s lock is held."""
    for draft in root.glob(".building-*"):
        other = draft.name.split("-")[1]
        if other == key:
            shutil.rmtree(draft, ignore_errors=True)
            continue
        try:
            with FileLock(root / f".{other}.lock", timeout=0):
                shutil.rmtree(draft, ignore_errors=True)
        except Timeout:
            continue


def _is_intact(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except ExportError:
        return False
    return True


def _write_manifest(folder: Path, parts: Mapping[str, str]) -> None:
    files = {
        path.name: {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
    }
    manifest = {"version": MANIFEST_VERSION, "made_from": dict(parts), "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
        return digest.hexdigest()


def _sync(folder: Path) -> None:
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
        # Building also reads, elsewhere: that is not for this to explain.
        if error.filename is not None:
            place = Path(error.filename)
            if not (place.is_relative_to(root) or root.is_relative_to(place)):
                raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
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
