"""The options of loading on the command line, and the model that they come to."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paddlenlp_codegen_task.cli.base import bytes_of
from paddlenlp_codegen_task.cli.generation import completing
from paddlenlp_codegen_task.model.names import BUILTIN, SALESFORCE_MODELS

if TYPE_CHECKING:
    from paddlenlp_codegen_task.generator import CodeGenerator

MODEL, SPEED = "Model", "Speed and memory"
_ENGINES = ("onnxruntime", "paddle", "auto")
_PRECISIONS = ("fp32", "fp16", "int8", "int8_weight_only", "int4", "int4_int8", "auto")
_KV_PRECISIONS = ("int8", "auto")

# Each option's type, and what typer is to know of it; names are those of `LoadingOptions`. That has
# static_mode, too: Paddle's layers one by one are for who debugs them, in Python.
_OPTIONS: dict[str, tuple[Any, list[str], dict[str, Any]]] = {
    "model": (
        str,
        ["--model", "-m"],
        {
            "help": "Name or folder of the model, or a folder that `export` made; 'builtin' for "
            "the small one of the package. Without it: Salesforce/codegen-350M-mono, or the "
            "built-in one where that cannot be had.",
            "rich_help_panel": MODEL,
            "show_default": False,
            "autocompletion": completing([BUILTIN, *SALESFORCE_MODELS]),
        },
    ),
    "engine": (
        str,
        ["--engine"],
        {
            "help": "onnxruntime, paddle or auto.",
            "rich_help_panel": MODEL,
            "show_default": "auto",
            "autocompletion": completing(_ENGINES),
        },
    ),
    "precision": (
        str,
        ["--precision"],
        {
            "help": "fp32, fp16, int8, int8_weight_only, int4, int4_int8 or auto.",
            "rich_help_panel": MODEL,
            "show_default": "auto",
            "autocompletion": completing(_PRECISIONS),
        },
    ),
    "kv_precision": (
        str,
        ["--kv-precision"],
        {
            "help": "int8, a quarter of the memory of keys and values (onnxruntime on a CPU), or "
            "auto.",
            "rich_help_panel": MODEL,
            "show_default": "auto",
            "autocompletion": completing(_KV_PRECISIONS),
        },
    ),
    "device": (
        str,
        ["--device"],
        {
            "help": "cpu, gpu, gpu:N or auto.",
            "rich_help_panel": MODEL,
            "show_default": "auto",
            "autocompletion": completing(("cpu", "gpu", "auto")),
        },
    ),
    "from_hf_hub": (
        bool,
        ["--from-hf-hub"],
        {
            "help": "Download the model from the Hugging Face hub, whatever its name.",
            "rich_help_panel": MODEL,
            "show_default": False,
        },
    ),
    "draft_model": (
        str,
        ["--draft-model"],
        {
            "help": "A smaller model with the same vocabulary, which guesses ahead where one "
            "completion runs alone.",
            "rich_help_panel": MODEL,
            "show_default": False,
        },
    ),
    "adapter": (
        str,
        ["--adapter"],
        {
            "help": "Folder or hub repository of a LoRA adapter, which is merged into the model.",
            "rich_help_panel": MODEL,
            "show_default": False,
        },
    ),
    "qkv_groups": (
        int,
        ["--qkv-groups"],
        {
            "help": "Groups of rows that the checkpoint's qkv_proj is stored in, 4 or 8, where its "
            "config.json does not tell.",
            "metavar": "N",
            "min": 1,
            "rich_help_panel": MODEL,
            "show_default": False,
        },
    ),
    "home_path": (
        str,
        ["--home-path"],
        {
            "help": "Folder for models and exports.",
            "metavar": "PATH",
            "rich_help_panel": MODEL,
            "show_default": "$PPNLP_HOME, else ~/.paddlenlp",
        },
    ),
    "cuda_graph": (
        bool,
        ["--cuda-graph"],
        {
            "help": "Capture CUDA graphs: onnxruntime on a GPU.",
            "rich_help_panel": SPEED,
            "show_default": False,
        },
    ),
    "batch_size": (
        int,
        ["--batch-size"],
        {
            "help": "Most sequences that run at once.",
            "metavar": "N",
            "min": 1,
            "rich_help_panel": SPEED,
            "show_default": "8",
        },
    ),
    "num_threads": (
        int,
        ["--num-threads"],
        {
            "help": "CPU threads of the model.",
            "metavar": "N",
            "min": 1,
            "rich_help_panel": SPEED,
            "show_default": "all",
        },
    ),
    "kv_cache_bytes": (
        int,
        ["--kv-cache-bytes"],
        {
            "help": "Most memory for the keys and values of what runs, such as 8G.",
            "metavar": "BYTES",
            "parser": bytes_of,
            "rich_help_panel": SPEED,
            "show_default": "half of what the model leaves free on the device",
        },
    ),
    "prefix_cache_bytes": (
        int,
        ["--prefix-cache-bytes"],
        {
            "help": "Most memory for those of earlier texts, whose beginnings are then not run "
            "again; 0 for none.",
            "metavar": "BYTES",
            "parser": bytes_of,
            "rich_help_panel": SPEED,
            "show_default": "0",
        },
    ),
}
NAMES = tuple(_OPTIONS)


def parameters(shown: Mapping[str, str]) -> list[inspect.Parameter]:
    """A keyword parameter of a command for each option, None where it is not given.

    Args:
        shown: what the help says of defaults that are a command's own.
    """
    found = []
    for name, (kind, names, settings) in _OPTIONS.items():
        show_default = shown.get(name, settings["show_default"])
        option = typer.Option(*names, **{**settings, "show_default": show_default})
        found.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[kind | None, option],
            )
        )
    return found


def collect(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of loading that were given, of what a command was called with."""
    return {name: values[name] for name in _OPTIONS if values.get(name) is not None}


def load(options: Mapping[str, Any], **more: Any) -> CodeGenerator:
    """Load what is asked for: a model by name or folder, or an export.

    Args:
        options: as `collect` gives them.
        **more: further options of `CodeGenerator.from_pretrained`.

    Raises:
        TypeError, ValueError, OSError, ExportError: as that does.
    """
    from paddlenlp_codegen_task.export.store import is_export
    from paddlenlp_codegen_task.generator import CodeGenerator

    given = {**options, **more}
    model = given.pop("model", None)
    if model is not None and is_export(os.path.expanduser(model)):
        return CodeGenerator.from_export(model, **given)
    return CodeGenerator.from_pretrained(model, **given)
