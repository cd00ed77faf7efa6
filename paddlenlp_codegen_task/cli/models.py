"""`models`: what there is to run, and what of it is here."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.cli.base import output, size_of, tell, told, write
from paddlenlp_codegen_task.model.names import BUILTIN, SALESFORCE_MODELS, parameters

_DEEPEST = 3  # folders below the store's in which an export may be: <owner>/<model>/<key>


@dataclass(frozen=True)
class Model:
    """A model that has a name; `folder` and `bytes` are None where it is not here."""

    name: str
    parameters: int
    folder: str | None
    bytes: int | None


@dataclass(frozen=True)
class Export:
    """An export in the store; the sizes of its files are right, or `problem` says what is not."""

    name: str
    engine: str
    precision: str
    kv_precision: str
    folder: str
    bytes: int
    problem: str | None


def models(
    home_path: Annotated[
        str | None,
        typer.Option(
            help="Folder for models and exports.",
            metavar="PATH",
            show_default="$PPNLP_HOME, else ~/.paddlenlp",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write it all as one object.")] = False,
) -> None:
    """List the models that have a name, which of them are here, and what was exported.

    Any other CodeGen checkpoint runs from its folder: --model FOLDER.
    """
    with told():
        tell()
        output()  # before anything that takes long
        from paddlenlp_codegen_task.load_options import LoadOptions

        home = LoadOptions(home_path=home_path).home
        known, exported = list(_known(home)), list(_exports(home))
        if as_json:
            values: dict[str, Any] = {
                "home": str(home),
                "models": [asdict(one) for one in known],
                "exports": [asdict(one) for one in exported],
            }
            write(json.dumps(values, indent=1) + "\n")
            return
        rows = [("MODEL", "PARAMETERS", "HERE", "WHERE")]
        for one in known:
            here = "no" if one.bytes is None else size_of(one.bytes)
            digits = 1 if one.parameters < 1e8 else 0
            count = f"{one.parameters / 1e6:,.{digits}f} M"
            rows.append((one.name, count, here, one.folder or ""))
        write(_table(rows))
        write("\n")
        rows = [("EXPORT OF", "FOR", "SIZE", "WHERE")]
        for export in exported:
            where = f"{export.folder} ({export.problem})" if export.problem else export.folder
            what = f"{export.engine} {export.precision}"
            if export.kv_precision == "int8":
                what += ", KV int8"
            rows.append((export.name, what, size_of(export.bytes), where))
        write(_table(rows) if exported else f"Nothing is exported in {home}.\n")


def _known(home: Path) -> Iterator[Model]:
    from paddlenlp_codegen_task.export.copying import folder_bytes
    from paddlenlp_codegen_task.finding import BUILTIN_FOLDER
    from paddlenlp_codegen_task.model import hub
    from paddlenlp_codegen_task.model.checkpoint import expected_shapes
    from paddlenlp_codegen_task.model.config import CodeGenConfig

    for name in SALESFORCE_MODELS:
        folder = hub.cached(name, home=home)
        there = (None, None) if folder is None else (str(folder), folder_bytes(folder))
        yield Model(name, parameters(name), *there)
    shapes = expected_shapes(CodeGenConfig.from_folder(BUILTIN_FOLDER))
    count = sum(map(math.prod, shapes.values()))
    yield Model(BUILTIN, count, str(BUILTIN_FOLDER), folder_bytes(BUILTIN_FOLDER))


def _exports(home: Path) -> Iterator[Export]:
    from paddlenlp_codegen_task.export import copying, store

    root = home / "taskflow" / "code_generation"
    for place, folders, _ in os.walk(root):
        folder = Path(place)
        folders[:] = sorted(one for one in folders if not one.startswith("."))  # no drafts
        if len(folder.relative_to(root).parts) >= _DEEPEST:
            folders.clear()
        if not store.is_export(folder):
            continue
        folders.clear()
        name = folder.relative_to(root).parent.as_posix()
        made_from: dict[str, str] = {}
        problem = None
        try:
            made_from = store.read_manifest(folder)["made_from"]
        except store.ExportError as error:
            problem = str(error)
        known = ("engine", "precision", "kv_precision")
        engine, precision, kv_precision = (made_from.get(one, "?") for one in known)
        size = copying.folder_bytes(folder)
        yield Export(name, engine, precision, kv_precision, str(folder), size, problem)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows with their columns one below the other."""
    rows = [tuple(checks.line(cell, 1000) for cell in row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    return "\n".join(lines) + "\n"
