"""From a model's name or folder to something that runs: find, export once, load."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.building import Exportable, checked_tokenizer, stored_groups
from paddlenlp_codegen_task.export import store
from paddlenlp_codegen_task.finding import find, opened_adapter, short
from paddlenlp_codegen_task.load_options import LoadOptions, checked_model
from paddlenlp_codegen_task.model import end_tokens
from paddlenlp_codegen_task.model.adapter import Merged
from paddlenlp_codegen_task.model.checkpoint import open_checkpoint
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.tokenizer import Tokenizer
from paddlenlp_codegen_task.model.weights import FusedWeights
from paddlenlp_codegen_task.runtime import engines
from paddlenlp_codegen_task.runtime.base import Runtime

_GROUPS = re.compile("[0-9]{1,4}")


class Described(Protocol):
    """What tells a model from others: CodeGenerator and the classes below have it."""

    @property
    def name(self) -> str:
        """As asked for, "builtin", or the folder's name."""

    @property
    def precision(self) -> str:
        """What it runs in, never "auto"."""

    @property
    def folder(self) -> Path:
        """The export; without a static graph, the checkpoint."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run.

    Attributes:
        name: as asked for, "builtin", or the folder's name.
        folder: the export it runs from; without a static graph, its checkpoint.
        precision: what it runs in, never "auto".
        eos_token_ids: the tokens that end a text, the tokenizer's own first (`end_tokens.of`).
    """

    name: str
    folder: Path
    precision: str
    runtime: Runtime
    tokenizer: Tokenizer
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class ExportedModel:
    """A model's export, which `load_export` loads, from here or from a copy.

    Attributes:
        name: as LoadedModel has it.
        folder: the export.
        precision: what it runs in, never "auto".
        on_gpu: whether it was asked to run on one.
    """

    name: str
    folder: Path
    precision: str
    on_gpu: bool


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
    with _weights_of(name_or_path, options) as found:
        if not options.static_mode:
            tokenizer = checked_tokenizer(found.folder, found.weights.config)
            ends = end_tokens.of(found.folder, found.weights.config, tokenizer)
            eager = _load_eager(found.weights, found.device_id, options.threads, found.precision)
            return LoadedModel(found.name, found.folder, found.precision, eager, tokenizer, ends)
        root = exports_of(found.name, options)
        export = found.find_or_build(root, large_files=False)
        try:
            return _open(found.name, export, found.precision, found.load)
        except store.ExportError:  # a large file is damaged: build again
            return _open(found.name, found.find_or_build(root), found.precision, found.load)


def find_export(name_or_path: str | os.PathLike[str] | None, options: LoadOptions) -> ExportedModel:
    """Find a model, export it unless that has been done, and load nothing.

    Args:
        name_or_path: as for `load_model`; or a folder that it exported.
        options: where and how it is to run.

    Raises:
        DownloadError, FileNotFoundError, CheckpointError, ExportError, ValueError: as `load_model`
            does, or `load_export`.
    """
    if not options.static_mode:
        raise ValueError("static_mode=False makes no export")
    if name_or_path is not None and store.is_export(os.path.expanduser(name_or_path)):
        folder = checks.path("folder", name_or_path)
        precision, device_id, _ = _checked_export(folder, options)
        store.check_large_files(folder)
        return ExportedModel(folder.name, folder, precision, device_id is not None)
    with _weights_of(name_or_path, options) as found:
        folder = found.find_or_build(exports_of(found.name, options))
        return ExportedModel(found.name, folder, found.precision, found.device_id is not None)


def exports_of(name: str, options: LoadOptions) -> Path:
    """The folder where a model's exports are kept."""
    return options.home / "taskflow" / "code_generation" / name


@contextmanager
def _weights_of(
    name_or_path: str | os.PathLike[str] | None, options: LoadOptions
) -> Iterator[Exportable]:
    """Find a model, and open its files."""
    if name_or_path is not None:
        name_or_path = checked_model("name_or_path", name_or_path)
    name, folder = find(name_or_path, options)
    config = CodeGenConfig.from_folder(folder, options.qkv_groups)
    end_tokens.named(folder, config)  # before a graph is built
    engine_name, engine = engines.choose(
        *(options.engine, options.precision, options.kv_precision, options.device),
        *(options.static_mode, config),
    )
    device_id = engine.find_device(options.device)
    precision = engines.resolve_precision(options.precision, device_id, engine_name, engine)
    kv_precision = engines.resolve_kv_precision(
        options.kv_precision, precision, device_id, engine_name
    )
    with open_checkpoint(folder) as checkpoint, opened_adapter(options) as adapter:
        weights = FusedWeights(Merged(checkpoint, adapter) if adapter else checkpoint, config)
        load = _loader(engine_name, engine, config, device_id, precision, options)
        auto = options.precision == "auto"
        yield Exportable(
            *(name, folder, weights, adapter, engine_name, engine, device_id),
            *(precision, kv_precision, auto, load),
        )


def load_export(path: str | os.PathLike[str], options: LoadOptions) -> LoadedModel:
    """Load a folder that an earlier `load_model` exported; no weights or hub are needed.

    Raises:
        FileNotFoundError: there is no such folder.
        ExportError: it is damaged, or made for another engine or version.
        ValueError: an option asks for what an export cannot do.
    """
    folder = checks.path("folder", path)
    precision, _, load = _checked_export(folder, options)
    return _open(folder.name, folder, precision, load)


def _checked_export(
    folder: Path, options: LoadOptions
) -> tuple[str, int | None, Callable[[Path], Runtime]]:
    """An export's precision, the device it is to run on, and what loads it; errors as there."""
    if not options.static_mode:
        raise ValueError("static_mode=False needs a checkpoint: an export has only the graph")
    if options.from_hf_hub:
        raise ValueError("from_hf_hub=True needs a checkpoint's name: an export is a folder here")
    if not folder.is_dir():
        raise FileNotFoundError(f"task_path: there is no folder {short(folder)}")
    made_from = store.read_manifest(folder)["made_from"]
    wanted = ("engine", "precision", "kv_precision")
    engine_name, precision, _ = found = [str(made_from.get(option)) for option in wanted]
    for option, ours in zip(wanted, found, strict=True):
        asked = getattr(options, option)
        if asked not in ("auto", ours):
            raise ValueError(f"{option}: {folder} was exported for {ours!r}, not {asked!r}")
    if engine_name not in engines.MODULES:
        raise store.ExportError(f"{folder} was exported for {engine_name!r}, an unknown engine")
    engine = engines.load_engine(engine_name)
    # What was exported for the CPU runs there by default, also where there is a GPU.
    to_cpu = options.device == "auto" and made_from.get("device") == "cpu"
    device_id = engine.find_device("cpu" if to_cpu else options.device)
    for part, version in engine.versions(device_id).items():
        if made_from.get(part) != version:
            raise store.ExportError(
                f"{folder} was exported for {part} {made_from.get(part)}, but this is {version}: "
                "export again from the weights"
            )
    groups = str(made_from.get("qkv_groups"))
    config = CodeGenConfig.from_folder(folder, int(groups) if _GROUPS.fullmatch(groups) else None)
    if options.qkv_groups not in (None, config.qkv_groups):
        raise ValueError(
            f"qkv_groups: {folder} was exported with {stored_groups(config)}, not "
            f"{options.qkv_groups}: leave it out, or export again from the weights"
        )
    with opened_adapter(options) as adapter:
        if adapter and adapter.identity != made_from.get("adapter"):
            raise ValueError(
                f"adapter: {folder} was exported without {short(Path(options.adapter or ''))}, or "
                "with another state of it: export again from the weights"
            )
    engines.resolve_precision(precision, device_id, engine_name, engine)
    load = _loader(engine_name, engine, config, device_id, precision, options)
    return precision, device_id, load


def load_draft(name_or_path: str | Path, options: LoadOptions) -> LoadedModel:
    """Load a draft model, or say in a ValueError that it is this one which cannot be loaded."""
    try:
        # What is said of the model's weights is not said of another's.
        return load_model(name_or_path, replace(options, qkv_groups=None, adapter=None))
    except (OSError, ValueError, store.ExportError) as error:
        raise ValueError(f"draft_model: {error}") from error


def check_vocabulary(draft_model: LoadedModel, model: LoadedModel) -> None:
    """Raise a ValueError unless tokens mean the same to both."""
    sizes = [one.runtime.config.vocab_size for one in (draft_model, model)]
    if sizes[0] == sizes[1]:
        ids = range(sizes[0])
        drafted, verified = (
            [one.tokenizer.token_bytes(token_id) for token_id in ids]
            for one in (draft_model, model)
        )
        if drafted == verified:
            return
    raise ValueError(
        f"draft_model: {draft_model.name} has another vocabulary than {model.name}: their tokens "
        "must be the same"
    )


def _loader(
    engine_name: str,
    engine: engines.Engine,
    config: CodeGenConfig,
    device_id: int | None,
    precision: str,
    options: LoadOptions,
) -> Callable[[Path], Runtime]:
    """What loads an export; ValueError now, before one is built, if an option cannot be met."""
    if options.cuda_graph and (engine_name != "onnxruntime" or device_id is None):
        raise ValueError("cuda_graph=True needs engine='onnxruntime' on a GPU")

    def load(export: Path) -> Runtime:
        return engine.load(
            export, config, device_id, options.threads, precision, options.cuda_graph
        )

    return load


def _open(name: str, export: Path, precision: str, load: Callable[[Path], Runtime]) -> LoadedModel:
    """Load an export's graph, while threads read its tokenizer and check its large files."""
    with ThreadPoolExecutor(2) as pool:
        tokenizer = pool.submit(Tokenizer.from_folder, export)
        checked = pool.submit(store.check_large_files, export)
        try:
            runtime = load(export)
        except Exception:
            checked.result()  # if a file is damaged, that says more
            raise
        try:
            checked.result()
            found = tokenizer.result()
            ends = end_tokens.of(export, runtime.config, found)
            return LoadedModel(name, export, precision, runtime, found, ends)
        except BaseException:
            runtime.close()
            raise


def _load_eager(
    weights: FusedWeights, device_id: int | None, num_threads: int, precision: str
) -> Runtime:
    from paddlenlp_codegen_task.runtime import paddle_inference

    return paddle_inference.load_eager(weights, device_id, num_threads, precision)
