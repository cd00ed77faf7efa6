"""`export`: a model as a folder that runs elsewhere, without its weights."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.cli.base import output, say, size_of, tell, told, write
from paddlenlp_codegen_task.cli.loading import load
from paddlenlp_codegen_task.cli.options import with_options

_OF_RUNNING = ("draft_model", "cuda_graph", "batch_size", "kv_cache_bytes", "prefix_cache_bytes")


@with_options(loading=True, without=_OF_RUNNING)
def export(
    folder: Annotated[
        str, typer.Argument(help="Where the export is to be: a folder that is not there yet.")
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Write what was exported as a JSON object.")
    ] = False,
    *,
    loading: dict[str, Any],
) -> None:
    """Export a model to a folder, for deployment.

    --model FOLDER runs it, as CodeGenerator.from_export(FOLDER) does, on machines without weights.
    """
    with told():
        tell()
        output()  # before anything that takes long
        target = checks.path("FOLDER", folder)
        from paddlenlp_codegen_task.export import copying, store

        copying.check_target(target)  # before what takes minutes
        with load({"batch_size": 1, **loading}) as generator:
            source, name = generator.folder, generator.name
        copied = copying.copy_export(source, target)
        made_from = store.read_manifest(target)["made_from"]
        found = {
            "folder": str(target.resolve()),
            "model": name,
            "engine": made_from["engine"],
            "precision": made_from["precision"],
            "kv_precision": made_from["kv_precision"],
            "bytes": copying.folder_bytes(target),
        }
        if not copied:
            say(f"{target} is this export already: nothing was written")
        kept = ", KV int8" if found["kv_precision"] == "int8" else ""
        if as_json:
            write(json.dumps(found) + "\n")
        else:
            write(
                f"{found['folder']}: {name}, {found['engine']}, {found['precision']}{kept}, "
                f"{size_of(found['bytes'])}\n"
            )
