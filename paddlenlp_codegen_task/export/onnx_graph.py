"""The fused step of CodeGen as an ONNX graph for ONNX Runtime, its weights streamed beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from paddlenlp_codegen_task.export import quantize
from paddlenlp_codegen_task.export.candidates import NUM_CANDIDATES
from paddlenlp_codegen_task.export.kv_scales import KVScales
from paddlenlp_codegen_task.export.onnx_attention import PLAIN_OPSET, PlainAttention
from paddlenlp_codegen_task.export.onnx_files import (
    COPY_FILE,
    GRAPH_FILE,
    PHASES,
    PREFILL_FILE,
    WEIGHTS_FILE,
)
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.weights import Array, FusedWeights, rotary_tables

_OPSET, _IR_VERSION = 18, 10
_MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators
_ALIGNMENT = 4096  # of a tensor in the weights file, so that it can be mapped into memory


def save_graph(
    weights: FusedWeights,
    folder: Path,
    precision: str,
    *,
    on_gpu: bool = False,
    calibration: Sequence[Sequence[int]] | None = None,
) -> None:
    """Write the step as model.onnx with model.onnx.data into `folder`, a layer at a time.

    Beside it goes copy.onnx, which copies a buffer of the caches into a larger one; for a precision
    of PHASES also prefill.onnx, the same step for prompts, which shares the weights that it can.

    With `on_gpu`, for ONNX Runtime's CUDA provider: what is not float32 as a whole computes, and
    keeps keys and values, in float16; float32 has attention from plain operators.

    With `calibration`, token ids of some texts, for the CPU provider: keys and values are kept in
    8 bits, with the scales that these texts ask for.

    The graph's inputs are those of `paddle_graph.step`, but for the lengths, which
    GroupQueryAttention wants as `last_positions` [B] int32 (tokens of a row with the new ones,
    less 1) and `total_length` int32 (the largest of them plus 1); caches are 4-D and come out
    again as key_present_i and value_present_i, to be bound to the same memory.
    """
    generated, prompts = PHASES.get(precision, (precision, ""))
    stored: dict[str, Any] = {}
    with (folder / WEIGHTS_FILE).open("wb") as file:
        builder = _GraphBuilder(
            file, stored, weights.config, generated, generated, on_gpu, calibration
        )
        (folder / GRAPH_FILE).write_bytes(builder.build(weights).SerializeToString())
        if prompts:  # of which the last token alone gets logits, as in a step
            builder = _GraphBuilder(
                file, stored, weights.config, prompts, generated, on_gpu, calibration
            )
            (folder / PREFILL_FILE).write_bytes(builder.build(weights).SerializeToString())
    (folder / COPY_FILE).write_bytes(_copy_model(builder.cache_dtype).SerializeToString())


class _GraphBuilder:
    """Collects nodes; writes each weight to the file as it comes, unless it is stored already."""

    def __init__(
        self,
        file: BinaryIO,
        stored: dict[str, Any],
        config: CodeGenConfig,
        precision: str,
        head_precision: str,
        on_gpu: bool,
        calibration: Sequence[Sequence[int]] | None,
    ) -> None:
        self._file = file
        self._stored = stored  # tensors that are in the file, by name
        self._config = config
        self._precision = precision
        self._head_precision = head_precision
        half = precision == "fp16" or (on_gpu and precision != "fp32")
        self.dtype = np.dtype(np.float16 if half else np.float32)
        self._element_type = helper.np_dtype_to_tensor_dtype(self.dtype)
        self.cache_dtype = self.dtype if calibration is None else np.dtype(np.int8)
        self._calibration = calibration
        self._kv_scales: KVScales | None = None
        self._on_gpu = on_gpu
        self._opset = _OPSET
        self._attention = self._grouped_attention
        self._nodes: list[Any] = []
        self._tensors: list[Any] = []

    def build(self, weights: FusedWeights) -> Any:
        config = self._config
        for name, table in zip(("rotary_cos", "rotary_sin"), rotary_tables(config), strict=True):
            self._weight(name, table)
        if config.n_layer > 1:
            self._constant("qkv_and_inner", [3 * config.n_embd, config.n_inner])
        self._constant("flat", [-1, config.n_embd])
        self._constant("first", np.int64(0))
        self._constant("num_candidates", [min(NUM_CANDIDATES, config.vocab_size)])
        if self._precision == "int8":
            self._constant("row", [-1])
            # -1 to 1 as 1 to 255: with signed weights, unsigned inputs take the fast path.
            self._constant("row_scale", np.float32(1 / 127))
            self._constant("row_zero", np.uint8(128))

        if self._on_gpu and self._precision == "fp32":
            self._opset = PLAIN_OPSET
            plain = PlainAttention(self._node, self._constant, config, _MICROSOFT)
            self._attention = plain.layer

        wte = weights.wte()
        if self._calibration is not None:
            self._kv_scales = KVScales(config, wte, self._calibration)
        hidden, update, bias = self._embedding(wte), "", ""
        del wte
        for layer in range(config.n_layer):
            hidden, update, bias = self._block(weights, layer, hidden, update, bias)
        normed, _ = self._layer_norm("ln_f", *weights.ln_f(), hidden, update, bias)
        weight, lm_bias = weights.lm_head()
        logits = self._matmul("lm_head", normed, weight)
        logits = self._node("Add", [logits, self._weight("lm_head_bias", lm_bias)])
        self._node("Cast", [logits], ["logits"], to=TensorProto.FLOAT)
        self._node("TopK", ["logits", "num_candidates"], ["candidates", "candidate_ids"], axis=-1)
        self._logsumexp()
        return self._model()

    def _block(
        self, weights: FusedWeights, layer: int, hidden: str, update: str, bias: str
    ) -> tuple[str, str, str]:
        """One layer; the residual, what is to be added to it, and the bias to add as well.

        SkipLayerNormalization of the next layer adds the three.
        """
        block, name = weights.block(layer), f"h{layer}_"
        normed, hidden = self._layer_norm(
            name + "ln", block.ln_weight, block.ln_bias, hidden, update, bias
        )
        if self._kv_scales:
            for kind, scales in zip(("key", "value"), self._kv_scales.of(block), strict=True):
                self._weight(f"{name}{kind}_scale", scales)
        if layer < self._config.n_layer - 1:
            fused = self._matmul(name + "w_in", normed, block.w_in)
            qkv, inner = name + "qkv", name + "inner"
            self._node("Split", [fused, "qkv_and_inner"], [qkv, inner], axis=-1)
            attention = self._attention(qkv, layer)
        else:  # of the last, all but keys and values is needed for the output's rows alone
            qkv_width = 3 * self._config.n_embd
            qkv = self._matmul(name + "qkv", normed, block.w_in[:, :qkv_width])
            attention = self._attention(qkv, layer)
            normed, hidden, attention = map(self._output_rows, (normed, hidden, attention))
            inner = self._matmul(name + "inner", normed, block.w_in[:, qkv_width:])
        inner = self._node(
            "FastGelu", [inner, self._weight(name + "b_in", block.b_in)], domain=_MICROSOFT
        )
        mixed = self._node("Concat", [attention, inner], axis=-1)
        update = self._matmul(name + "w_out", mixed, block.w_out)
        return hidden, update, self._weight(name + "b_out", block.b_out)

    def _output_rows(self, x: str) -> str:
        """The rows of x [B, T, n_embd] that logits are wanted of, [M, n_embd]."""
        return self._node("Gather", [self._node("Reshape", [x, "flat"]), "output_rows"])

    def _grouped_attention(self, qkv: str, layer: int) -> str:
        """GroupQueryAttention of qkv [B, T, 3 * n_embd], which appends to a layer's caches."""
        cache = [f"key_cache_{layer}", f"value_cache_{layer}"]
        present = [f"key_present_{layer}", f"value_present_{layer}"]
        lengths = ["last_positions", "total_length"]
        inputs = [qkv, "", "", *cache, *lengths, "rotary_cos", "rotary_sin"]
        rounding: dict[str, Any] = {}
        if self._kv_scales:
            inputs += ["", "", "", f"h{layer}_key_scale", f"h{layer}_value_scale"]
            rounding = dict.fromkeys(("k_quant_type", "v_quant_type"), "PER_CHANNEL")
            rounding["kv_cache_bit_width"] = 8
        return self._node(
            "GroupQueryAttention",
            inputs,
            [f"h{layer}_attention", *present],
            _MICROSOFT,
            num_heads=self._config.n_head,
            kv_num_heads=self._config.n_head,
            do_rotary=1,
            rotary_interleaved=1,
            **rounding,
        )

    def _logsumexp(self) -> None:
        """The largest logit less the logarithm of its softmax.

        ONNX Runtime's Softmax is vectorised; its ReduceLogSumExp takes ten times as long, and on
        CUDA its reductions need cuDNN, which nothing else here does.
        """
        softmax = self._node("Softmax", ["logits"], axis=-1)
        best = self._node("GatherElements", [softmax, "candidate_ids"], axis=-1)
        logit, probability = (
            self._node("Gather", [x, "first"], axis=1) for x in ("candidates", best)
        )
        self._node("Sub", [logit, self._node("Log", [probability])], ["logsumexp"])

    def _embedding(self, wte: Array) -> str:
        if self._precision in ("fp32", "fp16"):
            return self._node("Gather", [self._weight("wte", wte), "token_ids"])
        values, scales = quantize.per_row(wte)
        rows = self._node("Gather", [self._weight("wte", values), "token_ids"])
        rows = self._node("Cast", [rows], to=self._element_type)
        scale = self._node("Gather", [self._weight("wte_scales", scales), "token_ids"])
        return self._node("Mul", [rows, scale])

    def _layer_norm(
        self, name: str, weight: Array, bias: Array, hidden: str, update: str, update_bias: str
    ) -> tuple[str, str]:
        """Normalize hidden + update + update_bias; return that and the sum."""
        parameters = [self._weight(name + "_weight", weight), self._weight(name + "_bias", bias)]
        epsilon = self._config.layer_norm_epsilon
        if not update:
            return self._node("LayerNormalization", [hidden, *parameters], epsilon=epsilon), hidden
        outputs = [name + "_normed", "", "", name + "_sum"]
        inputs = [hidden, update, *parameters, update_bias]
        self._node("SkipLayerNormalization", inputs, outputs, _MICROSOFT, epsilon=epsilon)
        return outputs[0], outputs[3]

    def _matmul(self, name: str, x: str, weight: Array) -> str:
        """Product of x with a weight [in, out], in the precision of the graph or of its head."""
        head = name == "lm_head"
        precision = self._head_precision if head else self._precision
        if precision in ("fp32", "fp16"):
            return self._node("MatMul", [x, self._weight(name, weight)])
        if precision == "int8":
            return self._int8_matmul(name, x, weight)
        # Rounding lm_head costs more than all the rest (docs/quantization.md): it keeps 8 bits.
        bits = 4 if precision == "int4" and not head else 8
        values, scales = quantize.blockwise(weight, bits)
        return self._node(
            "MatMulNBits",
            [x, self._weight(name, values), self._weight(name + "_scales", scales)],
            domain=_MICROSOFT,
            K=weight.shape[0],
            N=weight.shape[1],
            bits=bits,
            block_size=quantize.BLOCK[bits],
            accuracy_level=4,  # products in int8
        )

    def _int8_matmul(self, name: str, x: str, weight: Array) -> str:
        """8-bit product, each row of x quantized by its own largest magnitude.

        DynamicQuantizeMatMul would take one scale for all rows, so that a prompt's tokens would
        depend on its batch; here they cannot, as sums of integers are exact.
        """
        values, scales = quantize.per_channel(weight)
        name += "_int8"  # beside the same weight in blocks
        largest = self._node("ReduceMax", [self._node("Abs", [x]), "row"], keepdims=1)
        # A row of zeros becomes NaN, then some integers, and zeros again by the last product.
        rows = self._node("Div", [x, largest])
        product = self._node(
            "MatMulIntegerToFloat",
            [
                self._node("QuantizeLinear", [rows, "row_scale", "row_zero"]),
                self._weight(name, values),
                "row_scale",
                self._weight(name + "_scales", scales),
                "row_zero",
            ],
            domain=_MICROSOFT,
        )
        return self._node("Mul", [product, largest])

    def _node(
        self,
        op: str,
        inputs: list[str],
        outputs: list[str] | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node; return the name of its first output."""
        outputs = outputs or [f"{op}_{len(self._nodes)}"]
        node = helper.make_node(op, inputs, outputs, outputs[0], domain=domain, **attributes)
        self._nodes.append(node)
        return outputs[0]

    def _constant(self, name: str, value: Any) -> None:
        """A small value, kept in the graph file, where shape inference sees it."""
        array = np.asarray(value) if isinstance(value, np.generic) else np.array(value, np.int64)
        self._tensors.append(onnx.numpy_helper.from_array(array, name))

    def _weight(self, name: str, value: npt.NDArray[Any]) -> str:
        """Write a weight to the file, once; floats in the graph's type."""
        if name in self._stored:
            self._tensors.append(self._stored[name])
            return name
        if value.dtype == np.float32:
            value = value.astype(self.dtype, copy=False)
        self._file.write(bytes(-self._file.tell() % _ALIGNMENT))
        tensor = TensorProto(name=name, dims=value.shape)
        tensor.data_type = helper.np_dtype_to_tensor_dtype(value.dtype)
        tensor.data_location = TensorProto.EXTERNAL
        where = {"location": WEIGHTS_FILE, "offset": self._file.tell(), "length": value.nbytes}
        for key, entry in where.items():
            tensor.external_data.add(key=key, value=str(entry))
        self._file.write(np.ascontiguousarray(value).data)
        self._stored[name] = tensor
        self._tensors.append(tensor)
        return name

    def _model(self) -> Any:
        config = self._config
        value = helper.make_tensor_value_info
        count = min(NUM_CANDIDATES, config.vocab_size)
        inputs = [
            value("token_ids", TensorProto.INT64, ["rows", "length"]),
            value("last_positions", TensorProto.INT32, ["rows"]),
            value("total_length", TensorProto.INT32, []),
            value("output_rows", TensorProto.INT64, ["outputs"]),
        ]
        outputs = [
            value("candidates", TensorProto.FLOAT, ["outputs", count]),
            value("candidate_ids", TensorProto.INT64, ["outputs", count]),
            value("logsumexp", TensorProto.FLOAT, ["outputs"]),
            value("logits", TensorProto.FLOAT, ["outputs", config.vocab_size]),
        ]
        cache_type = helper.np_dtype_to_tensor_dtype(self.cache_dtype)
        shape: list[str | int | None] = ["rows", config.n_head, "capacity", config.head_dim]
        for layer in range(config.n_layer):
            for kind in ("key", "value"):
                inputs.append(value(f"{kind}_cache_{layer}", cache_type, shape))
                outputs.append(value(f"{kind}_present_{layer}", cache_type, shape))
        graph = helper.make_graph(self._nodes, "codegen_step", inputs, outputs, self._tensors)
        opsets = [helper.make_opsetid("", self._opset), helper.make_opsetid(_MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)


def _copy_model(dtype: np.dtype[Any]) -> Any:
    """A graph that copies x into the front corner of the larger y: on a device, numpy cannot."""
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    sizes = ["rows", "heads", "capacity", "width"]
    x, y = (
        helper.make_tensor_value_info(name, kind, [name + one for one in sizes]) for name in "xy"
    )
    pads = helper.make_tensor_value_info("pads", TensorProto.INT64, [2 * len(sizes)])
    node = helper.make_node("Pad", ["x", "pads"], ["y"])
    graph = helper.make_graph([node], "copy", [x, pads], [y])
    opsets = [helper.make_opsetid("", _OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
