"""What each precision of ONNX Runtime costs in quality, on a model and on code it has not seen.

    python benchmarks/quality.py builtin --code build/training/corpus/valid.jsonl

--code is a .jsonl file of training/corpus.py, a source file, or a folder of .py files. Measured are

- bits per byte and next-token choices with the true text before every token, against fp32;
- greedy completions, token by token, against those of fp32;
- the same two with keys and values in 8 bits, and what their scales' reach does to that;
- 4 bits a weight in blocks of several sizes, with lm_head in 4 or 8 bits;
- outliers: a few dimensions of every LayerNorm's output times a factor and the rows of the weights
  behind them divided by it, which changes nothing in fp32;
- the same factors in one layer of 6B's and 16B's width with random weights that are not divided.

Writes JSON and prints the tables of docs/quantization.md. All graphs of a part are in memory at
once: three times the size of the float32 weights for `--parts precisions`, seven times for int4,
nine times for kv.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
from changed_weights import in_few_bits, rounded, rounded_per_group, with_outliers
from compare import machine

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.export import calibration, kv_scales, onnx_graph
from paddlenlp_codegen_task.export.onnx_files import GRAPH_FILE, PREFILL_FILE
from paddlenlp_codegen_task.finding import BUILTIN_FOLDER
from paddlenlp_codegen_task.model.checkpoint import open_checkpoint
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.names import BUILTIN
from paddlenlp_codegen_task.model.tokenizer import Tokenizer
from paddlenlp_codegen_task.model.weights import Array, FusedWeights

PRECISIONS = ("fp32", "int8", "int8_weight_only", "int4", "int4_int8")
KV_INT8 = {f"{one}, KV int8": one for one in ("fp32", "int4")}
ROOMS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 4.0)
NEW_TOKENS, PROMPT_TOKENS = 64, 64
BLOCKS = (32, 64, 128)
PARTS = ("precisions", "kv", "int4", "outliers", "layer")
FACTORS = (1, 10, 30, 100)
FLOAT8, FLOAT4 = (f"{bits}-bit weights, float activations" for bits in (8, 4))
# From 6.7B parameters on, 6 dimensions are outliers in nearly all tokens, up to about 100 times
# the others: https://arxiv.org/abs/2208.07339 section 4, https://arxiv.org/abs/2211.10438 figure 4.
WIDTHS, OUTLIERS = {"6B": 4096, "16B": 6144}, 6


def texts(path: Path) -> list[str]:
    """The source files behind --code."""
    if path.is_dir():
        return [one.read_text(encoding="utf-8") for one in sorted(path.rglob("*.py"))]
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".jsonl":
        return [text]
    documents = map(json.loads, text.splitlines())
    return [one["text"] for one in documents if one["kind"] == "module"]


def windows(tokenizer: Tokenizer, sources: list[str], length: int, count: int) -> list[list[int]]:
    """At most `count` pieces, evenly spread; each has one token more than are predicted in it."""
    found = []
    for source in sources:
        ids = tokenizer.encode(source)
        found += [ids[at : at + length + 1] for at in range(0, len(ids) - 1, length)]
    return found[:: math.ceil(len(found) / count)]


class Graph:
    """An exported step, run on a whole text at once.

    Of a precision with a graph for prompts, the first half of a text runs as a prompt, and the
    second as if it were generated.
    """

    def __init__(self, folder: Path, config: CodeGenConfig, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.x64quantprecision", "1")  # as the runtime does
        self._sessions = [
            onnxruntime.InferenceSession(str(folder / name), options, ["CPUExecutionProvider"])
            for name in (PREFILL_FILE, GRAPH_FILE)
            if (folder / name).exists()
        ]
        self._config = config
        types = {one.name: one.type for one in self._sessions[0].get_inputs()}
        self._kept: Any = np.int8 if types["key_cache_0"] == "tensor(int8)" else np.float32
        self._at_ends = self._codes = 0

    @classmethod
    def of(
        cls, weights: Any, precision: str, threads: int, texts: list[list[int]] | None = None
    ) -> Graph:
        with tempfile.TemporaryDirectory() as folder:
            onnx_graph.save_graph(weights, Path(folder), precision, calibration=texts)
            return cls(Path(folder), weights.config, threads)

    @property
    def at_ends(self) -> float:
        """The share of all keys and values in 8 bits that are the largest or least there are."""
        return self._at_ends / self._codes

    def logits(self, token_ids: list[int]) -> Array:
        """Logits [T, vocab_size] of all T tokens from the beginning of a context."""
        config, length = self._config, len(token_ids)
        names = [f"{kind}_{{}}_{n}" for n in range(config.n_layer) for kind in ("key", "value")]
        empty = np.zeros((1, config.n_head, length, config.head_dim), self._kept)
        caches, logits = [empty] * len(names), []
        ends = (length // 2, length) if len(self._sessions) == 2 else (length,)
        for session, start, end in zip(self._sessions, (0, *ends), ends, strict=False):
            if start == end:  # half of one token
                continue
            inputs = {
                "token_ids": np.array([token_ids[start:end]], np.int64),
                "last_positions": np.array([end - 1], np.int32),
                "total_length": np.array(end, np.int32),
                "output_rows": np.arange(end - start),
                **dict(zip((name.format("cache") for name in names), caches, strict=True)),
            }
            wanted = ["logits", *(name.format("present") for name in names)]
            found, *caches = session.run(wanted, inputs)
            logits.append(found)
        if self._kept is np.int8:
            for one in caches:
                self._at_ends += int(((one == 127) | (one == -128)).sum())
                self._codes += one.size
        return cast(Array, np.concatenate(logits))


def log_probabilities(logits: Array) -> Array:
    """To base 2."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    nats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return cast(Array, nats / np.float32(math.log(2)))


def measure(
    graphs: dict[str, Graph], pieces: list[list[int]], tokenizer: Tokenizer
) -> dict[str, dict[str, float]]:
    """Quality of every graph, and its distance from the first; a piece is one observation.

    `kl` is the Kullback-Leibler divergence from the first graph's distribution, in bits a byte:
    what coding text drawn from the first would cost more. It counts every change, while bits per
    byte of a given text may fall by chance.
    """
    sums: dict[str, list[list[float]]] = {name: [] for name in graphs}
    sizes, tokens = [], 0
    for piece in pieces:
        sizes.append(sum(len(tokenizer.token_bytes(token)) for token in piece[1:]))
        tokens += len(piece) - 1
        first_logits: Array | None = None
        for name, graph in graphs.items():
            logits = graph.logits(piece[:-1])
            first_logits = logits if first_logits is None else first_logits
            ours, first = log_probabilities(logits), log_probabilities(first_logits)
            sums[name].append(
                [
                    -float(ours[np.arange(len(ours)), piece[1:]].sum()),
                    float((np.exp2(first) * (first - ours)).sum()),
                    float((ours.argmax(axis=1) == first.argmax(axis=1)).sum()),
                    float((logits - first_logits).std(axis=1).sum()),
                    float(first_logits.std(axis=1).sum()),
                ]
            )
    found = {}
    first_bits = np.array(next(iter(sums.values())))[:, 0]
    weights = np.array(sizes, float)
    for name, rows in sums.items():
        bits, kl, same, error, spread = np.array(rows).T
        found[name] = {
            "bits_per_byte": bits.sum() / weights.sum(),
            **ratio("delta", bits - first_bits, weights),
            **ratio("kl", kl, weights),
            "same_choice": same.sum() / tokens,
            "logit_error": error.sum() / spread.sum(),
        }
    return found


def ratio(name: str, values: Any, weights: Any) -> dict[str, float]:
    """Sum of values over sum of weights, and the standard error of that."""
    mean = values.sum() / weights.sum()
    spread = np.std(values - mean * weights, ddof=1) * math.sqrt(len(values))
    return {name: mean, f"{name}_se": spread / weights.sum()}


def greedy(generator: CodeGenerator, prompts: list[str]) -> list[tuple[int, ...]]:
    """NEW_TOKENS for each prompt."""
    completions = generator.generate(
        prompts,
        max_length=NEW_TOKENS,
        min_length=NEW_TOKENS,
        decode_strategy="greedy_search",
        repetition_penalty=1.0,
        truncation=None,
    )
    return [one.token_ids for (one,) in completions]


def agreement(ours: list[tuple[int, ...]], first: list[tuple[int, ...]]) -> dict[str, float]:
    """How long completions stay the same."""
    equal = [
        next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
        for a, b in zip(ours, first, strict=True)
    ]
    return {
        "prompts": len(equal),
        "all_equal": sum(one == NEW_TOKENS for one in equal) / len(equal),
        "equal_tokens": sum(equal) / len(equal),
    }


def of_precisions(
    folder: Path, pieces: list[list[int]], prompts: list[str], threads: int
) -> dict[str, dict[str, float]]:
    """Every precision as users get it."""
    graphs, completions = {}, {}
    ways = {one: (one, "auto") for one in PRECISIONS}
    ways |= {name: (precision, "int8") for name, precision in KV_INT8.items()}
    with tempfile.TemporaryDirectory() as home:
        for name, (precision, kv_precision) in ways.items():
            with CodeGenerator.from_pretrained(
                folder,
                engine="onnxruntime",
                precision=cast(Any, precision),
                kv_precision=cast(Any, kv_precision),
                device="cpu",
                home_path=home,
                num_threads=threads,
            ) as generator:
                completions[name] = greedy(generator, prompts)
                graphs[name] = Graph(generator.folder, generator.config, threads)
        found = measure(graphs, pieces, Tokenizer.from_folder(folder))
    for name in ways:
        found[name] |= agreement(completions[name], completions["fp32"])
    return found


def of_kv(
    weights: FusedWeights, pieces: list[list[int]], tokenizer: Tokenizer, threads: int
) -> list[dict[str, float]]:
    """Keys and values in 8 bits, with scales that reach less far and farther."""
    texts = calibration.token_ids(tokenizer, weights.config)
    graphs, room = {"fp32": Graph.of(weights, "fp32", threads)}, kv_scales.ROOM
    try:
        for kv_scales.ROOM in ROOMS:
            graphs[str(kv_scales.ROOM)] = Graph.of(weights, "fp32", threads, texts)
    finally:
        kv_scales.ROOM = room
    found = measure(graphs, pieces, tokenizer)
    return [{"room": one, "at_ends": graphs[str(one)].at_ends, **found[str(one)]} for one in ROOMS]


def of_int4(
    weights: FusedWeights, pieces: list[list[int]], tokenizer: Tokenizer, threads: int
) -> list[dict[str, float]]:
    """4 bits a weight in several ways, activations as they are."""
    ways = [(block, bits) for bits in (4, 8) for block in BLOCKS]
    graphs = {"fp32": Graph.of(weights, "fp32", threads)}
    for block, bits in ways:
        changed = in_few_bits(weights, 4, block, bits)
        graphs[f"{block} {bits}"] = Graph.of(changed, "fp32", threads)
    found = measure(graphs, pieces, tokenizer)
    return [{"block": block, "head_bits": bits, **found[f"{block} {bits}"]} for block, bits in ways]


def of_outliers(
    weights: FusedWeights, pieces: list[list[int]], tokenizer: Tokenizer, threads: int
) -> dict[str, Any]:
    """The precisions, and 8-bit weights with activations as they are, under each factor."""
    width = weights.config.n_embd
    order = np.random.default_rng(0).permutation(width)
    dimensions = order[: max(1, width // 700)].tolist()  # as 6 of 4096
    found: dict[str, Any] = {"dimensions": dimensions, "factors": {}}
    for factor in FACTORS:
        changed = with_outliers(weights, dimensions, factor)
        graphs = {one: Graph.of(changed, one, threads) for one in PRECISIONS}
        graphs[FLOAT8] = Graph.of(in_few_bits(changed, 8, 128, 8), "fp32", threads)
        found["factors"][str(factor)] = measure(graphs, pieces, tokenizer)
    return found


def one_layer(width: int, factor: int) -> dict[str, float]:
    """Error of one product with outliers, over what the other dimensions contribute to it.

    Activations are normal, weights are normal, OUTLIERS dimensions of the former times `factor`.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, width), np.float32)
    weight = rng.standard_normal((width, 1024), np.float32) * np.float32(0.02)
    dimensions = rng.choice(width, OUTLIERS, replace=False)
    others = np.delete(x, dimensions, axis=1) @ np.delete(weight, dimensions, axis=0)
    x[:, dimensions] *= factor
    exact = x @ weight
    channels = rounded_per_group(weight.T, width).T
    blocks8, blocks4 = rounded(weight, 8, 128), rounded(weight, 4, 128)
    products = {
        "int8": rounded_per_group(x, width) @ channels,
        "int8_weight_only": rounded_per_group(x, 128) @ blocks8,
        FLOAT8: x @ blocks8,
        "int4": rounded_per_group(x, 128) @ blocks4,
        FLOAT4: x @ blocks4,
    }
    return {name: float((y - exact).std() / others.std()) for name, y in products.items()}


def print_table(header: list[str], rows: list[list[str]]) -> None:
    for row in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(row)} |")
    print()


def against_fp32(one: dict[str, float]) -> list[str]:
    return [
        f"{one['delta']:+.5f} ± {one['delta_se']:.5f}",
        f"{one['kl']:.5f} ± {one['kl_se']:.5f}",
        f"{one['same_choice']:.1%}",
    ]


def print_results(results: dict[str, Any]) -> None:
    compared = ["Against fp32", "KL", "Same choice"]
    if "precisions" in results:
        rows = []
        for name, one in results["precisions"].items():
            same = [f"{one['all_equal']:.0%}", f"{one['equal_tokens']:.0f}"]
            rows.append([name, f"{one['bits_per_byte']:.4f}", *against_fp32(one), *same])
        print_table(["Precision", "Bits per byte", *compared, "All equal", "Equal tokens"], rows)
    if "kv" in results:
        rows = [
            [f"{one['room']:g}", f"{one['at_ends']:.4%}", *against_fp32(one)]
            for one in results["kv"]
        ]
        print_table(["Reach", "At its ends", *compared], rows)
    if "int4" in results:
        rows = [
            [str(one["block"]), str(one["head_bits"]), *against_fp32(one)]
            for one in results["int4"]
        ]
        print_table(["Block", "Bits of lm_head", *compared], rows)
    if "outliers" in results:
        columns = results["outliers"]["factors"]
        rows = [
            [name, *(f"{one[name]['delta']:+.4f}" for one in columns.values())]
            for name in columns["1"]
        ]
        print_table(["Bits per byte against fp32", *columns], rows)
    for size, layer in results.get("layer", {}).items():
        rows = [[name, *(f"{one[name]:.1%}" for one in layer.values())] for name in layer["1"]]
        print_table([f"Error of a layer of {size}", *layer], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a checkpoint's folder, or builtin")
    parser.add_argument("--code", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--windows", type=int, default=200, help="pieces of code, at most")
    parser.add_argument("--context", type=int, default=512, help="tokens of a piece")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()

    folder = BUILTIN_FOLDER if options.model == BUILTIN else Path(options.model)
    config, tokenizer = CodeGenConfig.from_folder(folder), Tokenizer.from_folder(folder)
    length, threads = min(options.context, config.n_positions), options.threads
    pieces = windows(tokenizer, texts(options.code), length, options.windows)
    starts = [piece for piece in pieces if len(piece) > PROMPT_TOKENS]
    starts = starts[:: math.ceil(len(starts) / options.prompts)]
    prompts = [tokenizer.decode(piece[:PROMPT_TOKENS]) for piece in starts]
    results: dict[str, Any] = {
        "machine": machine(threads),
        "model": options.model,
        "code": {
            "pieces": len(pieces),
            "tokens": sum(len(piece) - 1 for piece in pieces),
            "bytes": sum(len(tokenizer.token_bytes(id_)) for one in pieces for id_ in one[1:]),
            "context": length,
        },
    }
    if "precisions" in options.parts:
        results["precisions"] = of_precisions(folder, pieces, prompts, threads)
    with open_checkpoint(folder) as checkpoint:
        weights = FusedWeights(checkpoint, config)
        if "kv" in options.parts:
            results["kv"] = of_kv(weights, pieces, tokenizer, threads)
        if "int4" in options.parts:
            results["int4"] = of_int4(weights, pieces, tokenizer, threads)
        if "outliers" in options.parts:
            results["outliers"] = of_outliers(weights, pieces[::2], tokenizer, threads)
    if "layer" in options.parts:
        results["layer"] = {
            size: {str(factor): one_layer(width, factor) for factor in FACTORS}
            for size, width in WIDTHS.items()
        }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"quality-{results['machine']['date']}.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print_results(results)


if __name__ == "__main__":
    main()
