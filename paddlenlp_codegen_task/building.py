"""An export of a model: what tells it from others, how it is built, and that it is the model."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paddlenlp_codegen_task.export import calibration, store
from paddlenlp_codegen_task.model import reference
from paddlenlp_codegen_task.model.adapter import Adapter
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.names import CONFIG_FILES, GENERATION_FILE, TOKENIZER_FILES
from paddlenlp_codegen_task.model.tokenizer import Tokenizer
from paddlenlp_codegen_task.model.weights import FusedWeights
from paddlenlp_codegen_task.runtime import cpu, engines
from paddlenlp_codegen_task.runtime.base import Runtime, decode, prefill

logger = logging.getLogger(__name__)

_NO_ADAPTER = "none"

# Largest difference of an export's logits from the reference, over their standard deviation. A
# graph that is wired wrongly is off by four and more; rounding to few bits may take a good part.
_TOLERANCE = {
    "fp32": 1e-3,
    "fp16": 0.1,
    "int8": 2.0,
    "int8_weight_only": 2.0,
    "int4": 3.0,
    "int4_int8": 3.0,
}
_KV_TOLERANCE = 2.0  # at least, with keys and values in 8 bits


@dataclass(frozen=True)
class Exportable:
    """What an export is built of: weights, the adapter's among them, and what is to run them."""

    name: str
    folder: Path
    weights: FusedWeights
    adapter: Adapter | None
    engine_name: str
    engine: engines.Engine
    device_id: int | None
    precision: str
    kv_precision: str
    auto: bool  # whether "auto" has chosen the precision
    load: Callable[[Path], Runtime]

    def find_or_build(self, root: Path, large_files: bool = True) -> Path:
        """The folder of their export; see `store.find_or_build`."""
        config = self.weights.config
        made_from = {
            "weights": self.weights.identity(),
            "files": _files_identity(self.folder),
            "engine": self.engine_name,
            "precision": self.precision,
            "kv_precision": self.kv_precision,
            "qkv_groups": stored_groups(config),
            "adapter": self.adapter.identity if self.adapter else _NO_ADAPTER,
            **self.engine.versions(self.device_id),
        }
        needed = self.engine.export_bytes(config, self.precision)
        return store.find_or_build(root, made_from, needed, self._build, large_files=large_files)

    def _build(self, draft: Path) -> None:
        tokenizer = checked_tokenizer(self.folder, self.weights.config)
        texts, tolerance = None, _TOLERANCE[self.precision]
        if self.kv_precision == "int8":
            texts = calibration.token_ids(tokenizer, self.weights.config)
            tolerance = max(tolerance, _KV_TOLERANCE)
        why = _why(self.engine_name, self.device_id) if self.auto else ""
        logger.info("exporting %s to a static graph in %s%s", self.folder, self.precision, why)
        for path in _copied_files(self.folder):
            shutil.copyfile(path, draft / path.name)
        self.engine.export(self.weights, draft, self.precision, self.device_id, texts)
        check_export(self.load(draft), self.weights, self.precision, tolerance)


def checked_tokenizer(folder: Path, config: CodeGenConfig) -> Tokenizer:
    """A checkpoint's tokenizer; ValueError if the model has fewer tokens."""
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model only "
            f"{config.vocab_size}; the files do not belong together"
        )
    return tokenizer


def stored_groups(config: CodeGenConfig) -> str:
    """How a checkpoint stores query, key and value, as an export's manifest says it."""
    return "none" if config.qkv_groups is None else str(config.qkv_groups)


def _copied_files(folder: Path) -> list[Path]:
    """What an export takes from its checkpoint beside the weights."""
    paths = [folder / name for name in (*CONFIG_FILES, *TOKENIZER_FILES, GENERATION_FILE)]
    return [path for path in paths if path.is_file()]


def _files_identity(folder: Path) -> str:
    """Hex digest of the files that an export copies: it must not outlive a change in them."""
    digest = hashlib.sha256()
    for path in _copied_files(folder):
        digest.update(f"{path.name}:{path.stat().st_size}:".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _why(engine_name: str, device_id: int | None) -> str:
    """What is to be said of the precision that "auto" has chosen, and of what is faster here."""
    if device_id is not None:
        return ", as on any GPU"
    if engine_name != "onnxruntime":  # which has no others
        return ", as PaddleNLP"
    faster = cpu.faster_than_fp32(cpu.flags(cpu.read()))
    return f", as PaddleNLP; {faster} here" if faster else ", as PaddleNLP"


def check_export(runtime: Runtime, weights: FusedWeights, precision: str, tolerance: float) -> None:
    """Compare a new export's logits after a few steps with the reference; free the export."""
    config = weights.config
    token_ids = [i * 7919 % config.vocab_size for i in range(1, min(9, config.n_positions + 1))]
    try:
        # By way of a second slot, a copy and single tokens: the KV buffers must hold as well.
        prefill(runtime, 0, [token_ids[-1:]])
        found = prefill(runtime, 1, [token_ids[:4]]).logits()[0].copy()
        runtime.cache.copy(1, 0)
        for token_id in token_ids[4:]:
            found = decode(runtime, [token_id]).logits()[0].copy()
    finally:
        runtime.close()
    expected = reference.forward(weights, token_ids)[-1]
    error = float(np.abs(found - expected).max() / expected.std())
    if not error <= tolerance:
        raise store.ExportError(
            f"the export is not the model: its logits are off by {error:.2g} standard deviations, "
            f"with {tolerance} allowed in {precision}; please report this"
        )
