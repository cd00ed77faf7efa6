"""How a model comes to workers: an export that they see is used in place; else it is sent once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from paddlenlp_codegen_task.distributed.cluster import Pool
from paddlenlp_codegen_task.export import store
from paddlenlp_codegen_task.generator import CodeGenerator
from paddlenlp_codegen_task.load_options import LoadOptions
from paddlenlp_codegen_task.loading import ExportedModel, exports_of, find_export
from paddlenlp_codegen_task.options import Settings
from paddlenlp_codegen_task.runtime import device

PART = 64 << 20  # bytes of a file that are one object of Ray's store

# What an export is made by; it says so itself.
_OF_EXPORTING = (
    *("model", "engine", "precision", "kv_precision", "from_hf_hub", "qkv_groups", "adapter"),
)


class Files:
    """Puts an export's files into the object store, once; an actor on the driver's node."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts: dict[str, list[Any]] = {}

    def parts(self, name: str) -> list[Any]:
        """References to what a file's content comes in, PART of it each."""
        if name not in self._parts:
            with (self._folder / name).open("rb") as file:
                self._parts[name] = [ray.put(part) for part in iter(lambda: file.read(PART), b"")]
        return self._parts[name]


@dataclass(frozen=True)
class Shipped:
    """An export, and where its files are to be had; can be pickled.

    Attributes:
        name: of the model.
        folder: of the export, on the driver's node, and wherever else that is seen.
        manifest: what is in it.
        files: the actor that has them.
    """

    name: str
    folder: Path
    manifest: Mapping[str, Any]
    files: Any

    @classmethod
    def of(cls, model: ExportedModel) -> Shipped:
        """Offer an export to workers; nothing is sent before one asks."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(Files).options(num_cpus=0, scheduling_strategy=here)
        folder = model.folder.absolute()  # workers are in folders of their own
        return cls(model.name, folder, store.read_manifest(folder), actor.remote(folder))

    def here(self, options: LoadOptions) -> Path:
        """The export on this node: in place, or in its store, where it is written only once.

        Raises:
            ExportError: it cannot be written.
        """
        try:
            if store.read_manifest(self.folder) == self.manifest:
                return self.folder
        except store.ExportError:  # another machine's path
            pass
        sizes = [entry["size"] for entry in self.manifest["files"].values()]
        root = exports_of(self.name, options)
        return store.find_or_build(root, self.manifest["made_from"], sum(sizes), self._receive)

    def _receive(self, draft: Path) -> None:
        """Write the files into a folder."""
        for name, entry in self.manifest["files"].items():
            digest = hashlib.sha256()
            with (draft / name).open("wb") as file:
                for part in ray.get(self.files.parts.remote(name)):
                    content = ray.get(part)
                    digest.update(content)
                    file.write(content)
            if digest.hexdigest() != entry["sha256"]:
                raise store.ExportError(f"{self.folder / name} has changed while it was sent")


@dataclass(frozen=True)
class Loading:
    """Loads a worker's generator; can be pickled.

    Attributes:
        model: what is loaded.
        options: of `CodeGenerator.from_pretrained`; those that an export is made by do not matter.
        pool: of the workers.
    """

    model: Shipped
    options: Mapping[str, Any]
    pool: Pool

    def __call__(self) -> CodeGenerator:
        """Load it.

        Raises:
            TypeError, ValueError, OSError, ExportError: as `CodeGenerator.from_export`.
        """
        options = {name: value for name, value in self.options.items() if name not in _OF_EXPORTING}
        options |= {"num_threads": self.pool.cpus, "device": "gpu" if self.pool.gpus else "cpu"}
        if options.get("kv_cache_bytes") is None and not self.pool.gpus:
            free = device.free_bytes(None)  # which several workers of a node have together
            if free is not None:
                options["kv_cache_bytes"] = max(1, free // 2 // self.pool.on_a_node)
        home = LoadOptions(home_path=options.get("home_path"))
        return CodeGenerator.from_export(self.model.here(home), **options)


def loading(
    model: str | os.PathLike[str] | None, workers: str | int | None, options: Mapping[str, Any]
) -> tuple[ExportedModel, Loading]:
    """Find a model, export it here unless that has been done, and say how workers load it.

    Args:
        model: name or folder, as for `CodeGenerator.from_pretrained`, or an export.
        workers: how many there are, N or MIN:MAX; None for as many as there is room for.
        options: of `CodeGenerator.from_pretrained`.

    Raises:
        TypeError, ValueError: an option is not possible.
        OSError, ExportError: the model cannot be found or exported.
    """
    settings = Settings.of(options)
    if settings.load.device.startswith("gpu:"):
        raise ValueError(
            f"device must be gpu, cpu or auto on Ray, which says which GPU is whose, "
            f"got {settings.load.device}"
        )
    found = find_export(model, settings.load)
    pool = Pool.of(workers, settings.load.num_threads, found.on_gpu)
    for_workers = dict(options)  # which are in folders of their own
    if settings.load.home_path is not None:
        for_workers["home_path"] = os.path.abspath(settings.load.home_path)
    if settings.draft_model is not None and os.path.isdir(settings.draft_model):
        for_workers["draft_model"] = os.path.abspath(settings.draft_model)
    return found, Loading(Shipped.of(found), for_workers, pool)
