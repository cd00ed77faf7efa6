"""What a store of exports may hold after an attack."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from .outcomes import check

KEY = re.compile(r"[0-9a-f]{16}")
BESIDE_MANIFEST = {"manifest.json", "checked.json"}


def root(home: Path, name: str) -> Path:
    """Where the exports of a model are kept."""
    return home / "taskflow" / "code_generation" / name


def published(folder: Path) -> list[Path]:
    """The exports in a root, each of which must be whole."""
    from paddlenlp_codegen_task.export import store

    found = [path for path in folder.iterdir() if KEY.fullmatch(path.name)]
    for export in found:
        store.read_manifest(export)
        store.check_large_files(export)
        manifest = json.loads((export / "manifest.json").read_text(encoding="utf-8"))
        extra = {path.name for path in export.iterdir()} - set(manifest["files"]) - BESIDE_MANIFEST
        check(not extra, f"an export holds {sorted(extra)}, which its manifest does not")
    return found


def debris(folder: Path) -> list[str]:
    """Names in a root that are neither of exports nor of locks."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return [name for name in names if not KEY.fullmatch(name) and not name.endswith(".lock")]


def remove_published(folder: Path) -> None:
    """Have the next process build again."""
    for export in folder.iterdir():
        if KEY.fullmatch(export.name):
            shutil.rmtree(export)
