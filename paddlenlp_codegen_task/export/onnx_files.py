"""What an ONNX export consists of. Running one needs no more than this of the exporter."""

from __future__ import annotations

GRAPH_VERSION = 6  # part of an export's key: raise it with every change of the graph or its files
GRAPH_FILE = "model.onnx"
PREFILL_FILE = "prefill.onnx"  # of precisions that have a graph of their own for prompts
WEIGHTS_FILE = "model.onnx.data"  # of both graphs
COPY_FILE = "copy.onnx"

# Each precision, and the bytes of one weight in it, scales included.
BYTES_PER_VALUE = {
    "fp32": 4.0,
    "fp16": 2.0,
    "int8": 1.01,
    "int8_weight_only": 1.04,
    "int4": 0.7,
    "int4_int8": 1.56,
}

# Precisions that are two: what is generated runs in the first, prompts in the second.
PHASES = {"int4_int8": ("int4", "int8")}
