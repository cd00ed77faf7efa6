"""From a model's name or folder to something that runs: find, export once, load."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from paddlenlp_codegen_task.export import store
from paddlenlp_codegen_task.model import hub, reference
from paddlenlp_codegen_task.model.checkpoint import open_checkpoint
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.names import CONFIG_FILES, DEFAULT_MODEL, TOKENIZER_FILES
from paddlenlp_codegen_task.model.tokenizer import Tokenizer
from paddlenlp_codegen_task.model.weights import FusedWeights
from paddlenlp_codegen_task.runtime.base import Runtime, prefill

logger = logging.getLogger(__name__)

BUILTIN = "builtin"
BUILTIN_FOLDER = Path(__file__).parent / BUILTIN

ENGINES = ("auto", "paddle")
PRECISIONS = ("auto", "fp32", "fp16")
_DTYPES = {"fp32": "float32", "fp16": "float16"}
# Largest difference of an export's logits from the reference, over their standard deviation.
_TOLERANCE = {"fp32": 1e-3, "fp16": 0.1}


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run.

    Attributes:
        name: as asked for, "builtin", or the folder's name.
        folder: the export it runs from; without a static graph, its checkpoint.
        dtype: of the KV buffers, "float32" or "float16".
    """

    name: str
    folder: Path
    runtime: Runtime
    tokenizer: Tokenizer
    dtype: str


@dataclass(frozen=True)
class LoadOptions:
    """Where and how a model runs; see `CodeGenerator.from_pretrained`."""

    engine: str = "auto"
    precision: str = "auto"
    device: str = "auto"
    num_threads: int | None = None
    home_path: str | os.PathLike[str] | None = None
    from_hf_hub: bool = False
    static_mode: bool = True

    def __post_init__(self) -> None:
        for name, allowed in (("engine", ENGINES), ("precision", PRECISIONS)):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}"
                )
        threads = self.num_threads
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise ValueError(f"num_threads must be a positive integer, got {threads!r}")

    @property
    def home(self) -> Path:
        """PaddleNLP's home, where models and exports are kept."""
        home = self.home_path or os.environ.get("PPNLP_HOME") or Path.home() / ".paddlenlp"
        return Path(home).expanduser()

    @property
    def threads(self) -> int:
        """CPU threads to run on: all that this process may use, unless told."""
        return self.num_threads or len(os.sched_getaffinity(0))


def load_model(name_or_path: str | os.PathLike[str] | None, options: LoadOptions) -> LoadedModel:
    """Find a model, export it unless that has been done, and load the export.

    Args:
        name_or_path: a folder with a checkpoint, a model's name, "builtin", or None for the best
            that is here: DEFAULT_MODEL, else the built-in model with a warning.
        options: where and how to run.

    Raises:
        DownloadError, FileNotFoundError, CheckpointError, ExportError, ValueError: in one line,
            what is missing or wrong.
    """
    name, folder = _find(name_or_path, options)
    config = CodeGenConfig.from_folder(folder)
    tokenizer = Tokenizer.from_folder(folder)
    _check_vocabulary(folder, config, tokenizer)
    from paddlenlp_codegen_task.runtime import paddle_inference

    device_id = paddle_inference.find_device(options.device)
    precision = _resolve_precision(options.precision, device_id)
    dtype = _DTYPES[precision]
    with open_checkpoint(folder) as checkpoint:
        weights = FusedWeights(checkpoint, config)
        if not options.static_mode:
            graph = paddle_inference.EagerGraph(weights, device_id, dtype)
            eager = paddle_inference.PaddleRuntime(graph, config, device_id, dtype)
            return LoadedModel(name, folder, eager, tokenizer, dtype)
        load = partial(_load_runtime, config=config, device_id=device_id, options=options)
        export = store.find_or_build(
            options.home / "taskflow" / "code_generation" / name,
            {
                "weights": weights.identity(),
                "files": _files_identity(folder),
                "engine": "paddle",
                "precision": precision,
                **paddle_inference.versions(),
            },
            paddle_inference.export_bytes(config, dtype),
            partial(_export, weights=weights, source=folder, precision=precision, load=load),
        )
    runtime = load(export, precision=precision)
    return LoadedModel(name, export, runtime, tokenizer, dtype)


def load_export(path: str | os.PathLike[str], options: LoadOptions) -> LoadedModel:
    """Load a folder that an earlier `load_model` exported; no weights or hub are needed.

    Raises:
        FileNotFoundError: there is no such folder.
        ExportError: it is damaged, or made for another engine or version.
        ValueError: an option asks for what an export cannot do.
    """
    if not options.static_mode:
        raise ValueError("static_mode=False needs a checkpoint: an export has only the graph")
    if options.from_hf_hub:
        raise ValueError("from_hf_hub=True needs a checkpoint's name: an export is a folder here")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"task_path: there is no folder {folder}")
    made_from = store.read_manifest(folder)["made_from"]
    from paddlenlp_codegen_task.runtime import paddle_inference

    for part, ours in {"engine": "paddle", **paddle_inference.versions()}.items():
        if made_from.get(part) != ours:
            raise store.ExportError(
                f"{folder} was exported for {part} {made_from.get(part)}, but this is {ours}: "
                "export again from the weights"
            )
    precision = str(made_from.get("precision"))
    if precision not in _DTYPES:
        raise store.ExportError(f"{folder} has precision {precision!r}, unknown to this version")
    if options.precision not in ("auto", precision):
        raise ValueError(
            f"precision: {folder} was exported as {precision!r}, not {options.precision!r}"
        )
    config = CodeGenConfig.from_folder(folder)
    device_id = paddle_inference.find_device(options.device)
    _resolve_precision(precision, device_id)
    runtime = _load_runtime(folder, config, device_id, options, precision)
    tokenizer = Tokenizer.from_folder(folder)
    return LoadedModel(folder.name, folder, runtime, tokenizer, _DTYPES[precision])


def _find(name_or_path: str | os.PathLike[str] | None, options: LoadOptions) -> tuple[str, Path]:
    """The name and checkpoint folder of what is asked for."""
    if name_or_path is None:
        try:
            return DEFAULT_MODEL, hub.fetch(DEFAULT_MODEL, home=options.home)
        except hub.DownloadError as error:
            logger.warning(
                "%s. Running the small built-in model instead: good for trying things out only. "
                'For real work pass task_path="a folder with a CodeGen checkpoint", or run once '
                "where %s can be downloaded",
                str(error).rstrip("."),
                DEFAULT_MODEL,
            )
            return BUILTIN, BUILTIN_FOLDER
    if name_or_path == BUILTIN:
        return BUILTIN, BUILTIN_FOLDER
    folder = Path(name_or_path).expanduser()
    if folder.is_dir() and not options.from_hf_hub:
        return folder.resolve().name, folder
    if not isinstance(name_or_path, str) or _is_path(name_or_path):
        if options.from_hf_hub:
            raise ValueError(f"from_hf_hub=True needs a repository's name, got the path {folder}")
        raise FileNotFoundError(f"task_path: there is no folder {folder}")
    found = hub.fetch(name_or_path, from_hf_hub=options.from_hf_hub, home=options.home)
    return name_or_path, found


def _is_path(name: str) -> bool:
    """Whether this can only be a folder: models are named "owner/model"."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def _check_vocabulary(folder: Path, config: CodeGenConfig, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model only "
            f"{config.vocab_size}; the files do not belong together"
        )


def _resolve_precision(precision: str, device_id: int | None) -> str:
    if precision == "auto":
        return "fp32" if device_id is None else "fp16"
    if precision == "fp16" and device_id is None:
        raise ValueError("precision 'fp16' needs a GPU; on a CPU use 'fp32'")
    return precision


def _load_runtime(
    folder: Path, config: CodeGenConfig, device_id: int | None, options: LoadOptions, precision: str
) -> Runtime:
    from paddlenlp_codegen_task.runtime import paddle_inference

    graph = paddle_inference.StaticGraph(folder, config, device_id, options.threads)
    return paddle_inference.PaddleRuntime(graph, config, device_id, _DTYPES[precision])


def _copied_files(folder: Path) -> list[Path]:
    """What an export takes from its checkpoint beside the weights."""
    paths = [folder / name for name in (*CONFIG_FILES, *TOKENIZER_FILES)]
    return [path for path in paths if path.is_file()]


def _files_identity(folder: Path) -> str:
    """Hex digest of the files that an export copies: it must not outlive a change in them."""
    digest = hashlib.sha256()
    for path in _copied_files(folder):
        digest.update(f"{path.name}:{path.stat().st_size}:".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _export(
    folder: Path,
    *,
    weights: FusedWeights,
    source: Path,
    precision: str,
    load: Callable[..., Runtime],
) -> None:
    """Write a complete export into `folder` and compare one forward pass with the reference."""
    from paddlenlp_codegen_task.export import paddle_graph

    logger.info("exporting %s to a static graph", source)
    for path in _copied_files(source):
        shutil.copyfile(path, folder / path.name)
    paddle_graph.save_graph(weights, folder, _DTYPES[precision])
    token_ids = [i * 7919 % weights.config.vocab_size for i in range(1, 9)]
    runtime = load(folder, precision=precision)
    try:
        found = prefill(runtime, 0, [token_ids]).logits()[0]
    finally:
        runtime.close()
    expected = reference.forward(weights, token_ids)[-1]
    error = float(np.abs(found - expected).max() / expected.std())
    if not error <= _TOLERANCE[precision]:
        raise store.ExportError(
            f"the export of {source} is not the model: its logits are off by {error:.2g} standard "
            f"deviations ({_TOLERANCE[precision]} allowed); please report this"
        )
