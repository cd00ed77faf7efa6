"""What an ONNX export consists of. Running one needs no more than this of the exporter."""

from __future__ import annotations

GRAPH_VERSION = 5  # part of an export's key: raise it with every change of the graph or its files
GRAPH_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
COPY_FILE = "copy.onnx"

# Each precision, and the bytes of one weight in it, scales included.
BYTES_PER_VALUE = {"fp32": 4.0, "fp16": 2.0, "int8": 1.01, "int8_weight_only": 1.04, "int4": 0.7}
