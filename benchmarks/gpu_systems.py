"""What benchmarks/gpu.py compares: exports of ours, and transformers with the same weights."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from make_checkpoint import SIZES
from safetensors.numpy import save_file
from sizes import RandomCheckpoint

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.model.checkpoint import expected_shapes
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.weights import FusedWeights
from paddlenlp_codegen_task.runtime import engines
from paddlenlp_codegen_task.runtime.base import decode, extend, prefill

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from byte_tokenizer import write_byte_tokenizer

Tokens = list[int]
_DRY = {"vocab_size": 1024, "n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 16}


def config_of(size: str) -> CodeGenConfig:
    return CodeGenConfig.from_dict({"vocab_size": 51200, **{**SIZES, "dry": _DRY}[size]})


def weights_of(size: str) -> FusedWeights:
    config = config_of(size)
    return FusedWeights(RandomCheckpoint(config), config)  # type: ignore[arg-type]


def generator_of(
    size: str, work: Path, precision: str, engine: str, device_id: int | None
) -> CodeGenerator:
    """The package's generator for a checkpoint of these weights, which is written first.

    Its tokenizer has a token a byte of text, and a word for each id that is left.
    """
    folder, config = work / f"checkpoint-{size}", config_of(size)
    if not folder.is_dir():
        draft = write_byte_tokenizer(work / f"checkpoint-{size}.part")
        vocabulary = json.loads((draft / "vocab.json").read_text(encoding="utf-8"))
        vocabulary |= {f"w{n}": n for n in range(len(vocabulary), config.vocab_size)}
        (draft / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        values = {name: getattr(config, name) for name in _DRY} | {"model_type": "codegen"}
        (draft / "config.json").write_text(json.dumps(values), encoding="utf-8")
        checkpoint = RandomCheckpoint(config)
        tensors = {name: checkpoint.read(name) for name in expected_shapes(config)}
        save_file(tensors, draft / "model.safetensors")
        draft.rename(folder)
    return CodeGenerator.from_pretrained(
        folder,
        engine=engine,  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        device="cpu" if device_id is None else "gpu",
        cuda_graph=engine == "onnxruntime" and device_id is not None,
        home_path=work / "home",
    )


class Ours:
    """An export, run step by step: the greedy choice, without what a request adds."""

    def __init__(self, folder: Path, size: str, options: dict[str, Any]) -> None:
        """Load it.

        Args:
            folder: the export.
            size: of the model.
            options: engine, precision, device_id, threads, cuda_graph.
        """
        engine = engines.load_engine(options["engine"])
        self.runtime = engine.load(
            folder,
            config_of(size),
            options["device_id"],
            options["threads"],
            options["precision"],
            options["cuda_graph"],
        )

    def start(self, prompts: list[Tokens], new_tokens: int = 0) -> Any:
        """Begin prompts of one length, with room for what follows; the output of the last step."""
        self.runtime.cache.reset()
        self.runtime.cache.reserve(len(prompts), len(prompts[0]) + new_tokens)
        return prefill(self.runtime, 0, prompts)

    def run(self, prompts: list[Tokens], new_tokens: int) -> tuple[float, float, list[Tokens]]:
        """Continue prompts of one length; seconds to the first tokens, and of the others."""
        begin = time.perf_counter()
        output = self.start(prompts, new_tokens)
        chosen = [output.candidate_ids[:, 0]]
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            chosen.append(decode(self.runtime, chosen[-1].tolist()).candidate_ids[:, 0])
        end = time.perf_counter()
        return first - begin, end - first, np.stack(chosen, axis=1).tolist()

    def continued(self, prompts: list[Tokens], new_tokens: int) -> tuple[Any, list[Tokens]]:
        """Logits behind prompts of any lengths, and their greedy continuations, all in a batch."""
        self.runtime.cache.reset()
        self.runtime.cache.reserve(len(prompts), max(map(len, prompts)) + new_tokens)
        logits = []
        for slot, prompt in enumerate(prompts):  # a long one in chunks, which one row may have
            output = extend(self.runtime, slot, [prompt])
            logits.append(output.logits()[0].copy())
        chosen = [[int(row.argmax())] for row in logits]
        for _ in range(new_tokens - 1):
            output = decode(self.runtime, [row[-1] for row in chosen])
            for row, token in zip(chosen, output.candidate_ids[:, 0].tolist(), strict=True):
                row.append(token)
        return np.stack(logits), chosen

    def close(self) -> None:
        self.runtime.close()


class Transformers:
    """transformers' CodeGen with the same weights; `generate`, eagerly or compiled."""

    def __init__(self, size: str, precision: str, device: str, static: bool = False) -> None:
        """Make it.

        Args:
            size: of the model.
            precision: "fp32" or "fp16".
            device: PyTorch's name.
            static: with the static cache, for which `generate` compiles the model on a GPU.
        """
        import torch
        import transformers

        ours = config_of(size)
        names = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "rotary_dim")
        config = transformers.CodeGenConfig(
            **{name: getattr(ours, name) for name in names},
            n_ctx=ours.n_positions,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,  # as many tokens as are asked for
        )
        with torch.device(device):
            model = transformers.CodeGenForCausalLM(config)
        checkpoint = RandomCheckpoint(ours)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.from_numpy(checkpoint.read(name)))
        half = precision == "fp16" and device != "cpu"
        self._model = (model.half() if half else model).eval()
        self._device, self._torch = device, torch
        self._static = {"cache_implementation": "static"} if static else {}

    def run(self, prompts: list[Tokens], new_tokens: int) -> tuple[float, float, list[Tokens]]:
        """Continue prompts of one length; seconds to the first tokens, and of the others."""
        from transformers import StoppingCriteria, StoppingCriteriaList

        torch, stamps = self._torch, []

        class Stamps(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **options: Any) -> Any:
                stamps.append(time.perf_counter())
                return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

        input_ids = torch.tensor(prompts, device=self._device)
        begin = time.perf_counter()
        with torch.inference_mode():
            tokens = self._model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                do_sample=False,
                max_new_tokens=new_tokens,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([Stamps()]),
                **self._static,
            )
        found = tokens[:, input_ids.shape[1] :].tolist()
        end = time.perf_counter()
        return stamps[0] - begin, end - stamps[0], found

    def continued(self, prompts: list[Tokens], new_tokens: int) -> tuple[Any, list[Tokens]]:
        """Logits behind each prompt, and its greedy continuation, each alone."""
        torch, logits = self._torch, []
        with torch.inference_mode():
            for prompt in prompts:
                input_ids = torch.tensor([prompt], device=self._device)
                logits.append(self._model(input_ids).logits[0, -1].float().cpu().numpy())
        chosen = [self.run([prompt], new_tokens)[2][0] for prompt in prompts]
        return np.stack(logits), chosen

    def close(self) -> None:
        del self._model
        if self._device != "cpu":
            self._torch.cuda.empty_cache()
