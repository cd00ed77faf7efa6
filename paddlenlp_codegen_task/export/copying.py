"""Copies an export out of the store, to a folder that is deployed."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paddlenlp_codegen_task.export import store
from paddlenlp_codegen_task.export.store import ExportError


def copy_export(source: Path, target: Path) -> bool:
    """Copy an export to a folder of its own, which appears there whole or not at all.

    Args:
        source: an export.
        target: where it is to be; nothing may be there, or an empty folder, or this very export.

    Returns:
        Whether it was copied: False if it is there already.

    Raises:
        ExportError: there is something else, `source` is damaged, or the copy cannot be written.
    """
    manifest = store.read_manifest(source)
    with _explained(target):
        check_target(target)
        folder = Path(os.path.realpath(target))
        if store.is_export(folder):
            _check_same(folder, manifest)
            return False
        if os.path.lexists(folder.parent) and not folder.parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_debris(folder)
        needed = folder_bytes(source)
        free = shutil.disk_usage(folder.parent).free
        if needed > free:
            raise ExportError(f"the export has {needed:,} bytes, and {folder.parent} {free:,} left")
        draft = folder.with_name(f"{_prefix(folder)}{secrets.token_hex(8)}")
        draft.mkdir()
        with _locked(draft):  # by which a later call knows that this one is not dead
            try:
                for name in (*manifest["files"], store.MANIFEST):
                    shutil.copyfile(source / name, draft / name)
                store.read_manifest(draft)
                store.check_large_files(draft)
                store.sync(draft)
                draft.rename(folder)
                _sync_entry(folder.parent)
            finally:
                store.remove(draft)
    return True


def folder_bytes(folder: Path) -> int:
    """What the files of a folder have, each counted once however many links lead to it."""
    sizes: dict[tuple[int, int], int] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                status = os.stat(os.path.join(place, name))
            except OSError:  # a link to nothing, or just removed
                continue
            sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())


def check_target(target: Path) -> None:
    """Raise an ExportError where there is something that is no export, and must not be lost."""
    with _explained(target):
        is_free = not os.path.lexists(os.path.realpath(target)) or _is_empty_folder(target)
    if not is_free and not store.is_export(target):
        raise ExportError(f"{target} is there and is no export: name a folder that is not there")


def _check_same(folder: Path, manifest: dict[str, object]) -> None:
    """Raise an ExportError unless this export is there already, and whole."""
    there = store.read_manifest(folder)
    if there["made_from"] != manifest["made_from"] or there["files"] != manifest["files"]:
        raise ExportError(
            f"{folder} is there and is another export: remove it, or name a folder that is not"
        )
    store.check_large_files(folder)


def _is_empty_folder(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _prefix(folder: Path) -> str:
    """What the names begin with of folders that are being copied to this place."""
    return f".{folder.name[:50]}.copying-"


def _remove_debris(folder: Path) -> None:
    """Remove what killed copies to this place left."""
    for draft in folder.parent.iterdir():
        if draft.name.startswith(_prefix(folder)):
            try:
                with _locked(draft):
                    store.remove(draft)
            except OSError:  # being written now; or just gone
                continue


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock.

    Raises:
        OSError: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _sync_entry(folder: Path) -> None:
    """Have a rename in a folder outlive the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ExportError(f"cannot write the export to {target}: {error.strerror}") from error
