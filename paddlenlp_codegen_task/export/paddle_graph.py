"""The fused step of CodeGen in Paddle: one function for the static graph and for eager runs.

The static graph is built without values: parameters are declared, the program is serialised, and
the weights are streamed beside it in Paddle's own parameter format, one tensor in memory at a time.
"""

from __future__ import annotations

import re
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.base.proto import framework_pb2

from paddlenlp_codegen_task.export.candidates import NUM_CANDIDATES
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.weights import Array, Block, FusedWeights, rotary_tables

GRAPH_VERSION = 3  # part of an export's key: raise it with every change of `step` or its files
PROGRAM_FILES = ("model.json", "model.pdmodel")  # of Paddle 3 and Paddle 2
PARAMETERS_FILE = "model.pdiparams"

Tensor = Any  # a paddle.Tensor, or a static graph's value
Parameter = Callable[[str], Tensor]


def inputs(config: CodeGenConfig, dtype: str) -> list[tuple[str, list[int | None], str]]:
    """Name, shape and dtype of the step's inputs, in order; buffers from the fourth on."""
    buffers = [f"{kind}_cache_{i}" for i in range(config.n_layer) for kind in ("key", "value")]
    return [
        ("token_ids", [None, None], "int64"),
        ("past_lengths", [None], "int64"),
        ("output_rows", [None], "int64"),
        *((name, [None, config.head_dim], dtype) for name in buffers),
    ]


def step(
    config: CodeGenConfig,
    parameter: Parameter,
    token_ids: Tensor,
    past_lengths: Tensor,
    output_rows: Tensor,
    caches: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run T new tokens of each of B rows through the model, writing their keys and values.

    Args:
        config: sizes of the model.
        parameter: gives a parameter by its name (see `parameters`).
        token_ids: [B, T] int64. Rows with fewer tokens are padded on the right.
        past_lengths: [B] int64, the number of tokens each row already holds.
        output_rows: [M] int64, indices into the B * T tokens whose logits are wanted.
        caches: key and value buffer of each layer, [B * n_head * capacity, head_dim], updated in
            place. What padding writes lies past a row's length, and is overwritten before any
            token attends to it.

    Returns:
        Candidate logits [M, NUM_CANDIDATES] float32 in descending order, candidate ids
        [M, NUM_CANDIDATES] int64, the logsumexp of each row [M] float32, and all logits
        [M, vocab_size] float32.
    """
    heads, head_dim = config.n_head, config.head_dim
    batch, length = paddle.shape(token_ids)[0], paddle.shape(token_ids)[1]
    capacity = paddle.shape(caches[0])[0] // (batch * heads)
    cache_shape = [batch, heads, capacity, head_dim]

    positions = past_lengths.unsqueeze(1) + paddle.arange(length, dtype="int64")  # [B, T]
    cos = F.embedding(positions, parameter("rotary_cos")).unsqueeze(2)  # [B, T, 1, head_dim / 2]
    sin = F.embedding(positions, parameter("rotary_sin")).unsqueeze(2)
    rows = paddle.arange(batch * heads, dtype="int64").reshape([-1, heads, 1]) * capacity
    cache_index = (rows + positions.unsqueeze(1)).reshape([-1])  # [B * heads * T]
    visible = paddle.arange(capacity, dtype="int64") <= positions.unsqueeze(-1)  # [B, T, capacity]
    mask = (visible.astype("float32") - 1.0).scale(1e9).unsqueeze(1)  # 0 or -1e9

    hidden = F.embedding(token_ids, parameter("wte"))  # [B, T, H]
    for layer in range(config.n_layer):

        def weight(name: str, layer: int = layer) -> Tensor:
            return parameter(block_parameter(layer, name))

        normed = _layer_norm(config, hidden, weight("ln_weight"), weight("ln_bias"))
        qk, value, inner = paddle.split(
            paddle.matmul(normed, weight("w_in")),
            [2 * config.n_embd, config.n_embd, config.n_inner],
            axis=-1,
        )
        first, second = paddle.split(qk.reshape([0, 0, 2 * heads, head_dim]), 2, axis=-1)
        qk = paddle.concat(
            [first * cos - second * sin, second * cos + first * sin], axis=-1
        ).transpose([0, 2, 1, 3])
        query, key = paddle.split(qk, 2, axis=1)  # [B, heads, T, head_dim]
        value = value.reshape([0, 0, heads, head_dim]).transpose([0, 2, 1, 3])

        keys = _write(caches[2 * layer], cache_index, key, cache_shape)
        values = _write(caches[2 * layer + 1], cache_index, value, cache_shape)
        # In float32 whatever the weights are: query . key overflows float16 in the larger models.
        scores = paddle.matmul(query.astype("float32"), keys.astype("float32"), transpose_y=True)
        probabilities = F.softmax(scores + mask, axis=-1).astype(values.dtype)
        attention = paddle.matmul(probabilities, values).transpose([0, 2, 1, 3])
        mixed = paddle.concat(
            [
                attention.reshape([0, 0, config.n_embd]),
                F.gelu(inner + weight("b_in"), approximate=True),
            ],
            axis=-1,
        )
        hidden = hidden + paddle.matmul(mixed, weight("w_out")) + weight("b_out")

    hidden = paddle.gather(hidden.reshape([-1, config.n_embd]), output_rows)
    hidden = _layer_norm(config, hidden, parameter("ln_f_weight"), parameter("ln_f_bias"))
    logits = paddle.matmul(hidden, parameter("lm_head_weight")) + parameter("lm_head_bias")
    logits = logits.astype("float32")
    candidates, candidate_ids = paddle.topk(logits, min(NUM_CANDIDATES, config.vocab_size))
    return candidates, candidate_ids, paddle.logsumexp(logits, axis=-1), logits


def _layer_norm(config: CodeGenConfig, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalize in float32, which Paddle 3 wants for float16 and which is more exact."""
    wide = x.astype(weight.dtype)
    normed = F.layer_norm(wide, config.n_embd, weight, bias, config.layer_norm_epsilon)
    return normed.astype(x.dtype)


def _write(cache: Tensor, index: Tensor, new: Tensor, cache_shape: list[Any]) -> Tensor:
    """Write new keys or values [B, heads, T, head_dim] into a buffer; return it in 4-D."""
    rows = new.reshape([-1, new.shape[-1]])
    if paddle.in_dynamic_mode() or _uses_pir():
        # The public paddle.scatter_ turns into the copying scatter under a static graph.
        written = paddle._C_ops.scatter_(cache, index, rows, True)
    else:
        written = paddle.scatter(cache, index, rows)  # put in place by _alias_caches
    return written.reshape(cache_shape)


def _uses_pir() -> bool:
    """Whether this Paddle saves programs in its new representation (.json; Paddle 3)."""
    return hasattr(paddle.framework, "use_pir_api") and bool(paddle.framework.use_pir_api())


def parameters(weights: FusedWeights) -> Iterator[tuple[str, Array]]:
    """All parameters of the step in the order of their names, read one layer at a time."""
    config = weights.config
    for layer in range(config.n_layer):
        for name, value in _block_parameters(weights.block(layer), config):
            yield block_parameter(layer, name), value
    weight, bias = weights.lm_head()
    yield "lm_head_bias", bias
    yield "lm_head_weight", weight
    weight, bias = weights.ln_f()
    yield "ln_f_bias", bias
    yield "ln_f_weight", weight
    yield from _rotary_parameters(config)
    yield "wte", weights.wte()


def block_parameter(layer: int, name: str) -> str:
    """Name of one layer's parameter; padded, since parameters are stored in alphabetical order."""
    return f"h.{layer:03d}.{name}"


def parameter_dtype(name: str, dtype: str) -> str:
    """Type of one parameter in a graph of `dtype`: LayerNorm's stay float32."""
    return "float32" if re.search(r"\bln_", name) else dtype


def parameter_shapes(config: CodeGenConfig) -> dict[str, list[int]]:
    """Shape of every parameter of the step."""
    h, inner, vocab = config.n_embd, config.n_inner, config.vocab_size
    block = {
        "b_in": [inner],
        "b_out": [h],
        "ln_bias": [h],
        "ln_weight": [h],
        "w_in": [h, 3 * h + inner],
        "w_out": [h + inner, h],
    }
    table = [config.n_positions, config.head_dim // 2]
    return {
        **{
            block_parameter(layer, name): shape
            for layer in range(config.n_layer)
            for name, shape in block.items()
        },
        "lm_head_bias": [vocab],
        "lm_head_weight": [h, vocab],
        "ln_f_bias": [h],
        "ln_f_weight": [h],
        "rotary_cos": table,
        "rotary_sin": table,
        "wte": [vocab, h],
    }


def _rotary_parameters(config: CodeGenConfig) -> Iterator[tuple[str, Array]]:
    """Rotation tables [n_positions, head_dim / 2]: the unrotated rest of a head turns by 0."""
    cos, sin = rotary_tables(config)
    padding = ((0, 0), (0, config.head_dim // 2 - cos.shape[1]))
    yield "rotary_cos", np.pad(cos, padding, constant_values=1.0)
    yield "rotary_sin", np.pad(sin, padding)


def _block_parameters(block: Block, config: CodeGenConfig) -> Iterator[tuple[str, Array]]:
    """One block, with query and key columns laid out for `step`.

    CodeGen turns neighbouring pairs (0, 1), (2, 3), ... of a head's first rotary_dim channels.
    Moving the first of each pair to the front half of the head and the second to the back half,
    in query and key alike, leaves their products as they are and makes the rotation two slices
    instead of an interleave. The query also takes attention's 1 / sqrt(head_dim).
    """
    order = np.arange(config.head_dim)
    order = np.concatenate([order[0::2], order[1::2]])
    columns = (np.arange(config.n_head)[:, None] * config.head_dim + order).reshape(-1)
    h = config.n_embd
    w_in = block.w_in.copy()
    w_in[:, :h] = block.w_in[:, columns] * np.float32(config.head_dim**-0.5)
    w_in[:, h : 2 * h] = block.w_in[:, h + columns]
    yield "b_in", block.b_in
    yield "b_out", block.b_out
    yield "ln_bias", block.ln_bias
    yield "ln_weight", block.ln_weight
    yield "w_in", w_in
    yield "w_out", block.w_out


# Static or eager is a switch of the whole process: whoever needs one of them holds this.
_mode_lock = threading.RLock()


@contextmanager
def paddle_mode(*, static: bool) -> Iterator[None]:
    """Run a block in static or in eager mode, whatever mode the caller's program is in."""
    with _mode_lock:
        was_static = not paddle.in_dynamic_mode()
        (paddle.enable_static if static else paddle.disable_static)()
        try:
            yield
        finally:
            (paddle.enable_static if was_static else paddle.disable_static)()


def save_graph(weights: FusedWeights, folder: Path, dtype: str = "float32") -> None:
    """Write the step as `model`.json or .pdmodel with `model.pdiparams` into `folder`.

    Args:
        weights: where parameters are read from, one layer at a time.
        folder: an existing folder.
        dtype: "float32" or "float16", of parameters and buffers.
    """
    with paddle_mode(static=True):
        _save_program(weights.config, folder, dtype)
    with open(folder / PARAMETERS_FILE, "wb") as file:
        _save_parameters(file, weights, dtype)


def _save_program(config: CodeGenConfig, folder: Path, dtype: str) -> None:
    """Build and serialise the static program."""
    program, startup = paddle.static.Program(), paddle.static.Program()
    shapes = parameter_shapes(config)
    declared: dict[str, Tensor] = {}
    with paddle.static.program_guard(program, startup):

        def parameter(name: str) -> Tensor:
            if name not in declared:
                declared[name] = paddle.static.create_parameter(
                    shapes[name], parameter_dtype(name, dtype), name=name
                )
            return declared[name]

        values = [paddle.static.data(*one) for one in inputs(config, dtype)]
        outputs = step(config, parameter, values[0], values[1], values[2], values[3:])
    program = paddle.static.normalize_program(program, values, list(outputs))
    if _uses_pir():
        path = folder / PROGRAM_FILES[0]
        path.touch()  # where it cannot be made, Paddle's error does not say why
        paddle.base.core.serialize_pir_program(program, str(path), True, False, True)
    else:
        _alias_caches(program)
        (folder / PROGRAM_FILES[1]).write_bytes(program.desc.serialize_to_string())


def _alias_caches(program: Any) -> None:
    """Make each scatter write into the buffer it reads (Paddle 2 has no such op to call)."""
    block = program.global_block()
    scatters = [op for op in block.ops if op.type == "scatter"]
    for copy, cache in [(op.output("Out")[0], op.input("X")[0]) for op in scatters]:
        for op in block.ops:
            op.desc._rename_input(copy, cache)
            op.desc._rename_output(copy, cache)
        block._remove_var(copy)


def _save_parameters(file: BinaryIO, weights: FusedWeights, dtype: str) -> None:
    """Write Paddle's combined parameter file: the tensors in the order of their names.

    The format of one tensor is that of SerializeToStream in Paddle's
    paddle/phi/core/framework/dense_tensor_serialize.cc: format version, number of levels of
    detail (0), tensor version, length of the description, description, data.
    """
    codes = {"float32": framework_pb2.VarType.FP32, "float16": framework_pb2.VarType.FP16}
    for name, value in parameters(weights):
        stored = np.ascontiguousarray(value, parameter_dtype(name, dtype))
        description = framework_pb2.VarType.TensorDesc(
            data_type=codes[str(stored.dtype)], dims=value.shape
        )
        encoded = description.SerializeToString()
        file.write(struct.pack("<IQIi", 0, 0, 0, len(encoded)))
        file.write(encoded)
        file.write(stored.data)
