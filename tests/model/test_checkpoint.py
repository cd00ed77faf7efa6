"""Checkpoints as torch, Paddle, safetensors, transformers and PaddleNLP really write them."""

from __future__ import annotations

import collections
import json
import math
import os
import pickle
import random
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
import zlib  # paddle 2.6 breaks a zlib imported after it
from pathlib import Path

import numpy as np
import pytest

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.model.checkpoint import (
    CheckpointError,
    expected_shapes,
    open_checkpoint,
)
from paddlenlp_codegen_task.model.config import CodeGenConfig

sys.path.insert(0, str(Path(__file__).parents[1]))
from checkpoints import (
    TINY,
    config_json,
    random_tensors,
    tensor_shapes,
    transposed,
    write_paddle,
    write_safetensors,
    write_torch,
)

TENSORS = random_tensors(TINY)
QKV = "transformer.h.1.attn.qkv_proj.weight"
FORMATS = {
    "safetensors": (write_safetensors, {}),
    "safetensors of PaddleNLP": (write_safetensors, {"layout": "np"}),
    "safetensors of Paddle": (write_safetensors, {"layout": "pd"}),
    "torch": (write_torch, {}),
    "torch legacy": (write_torch, {"legacy": True}),
    "paddle": (write_paddle, {}),
    "paddle protocol 3": (write_paddle, {"protocol": 3}),
    "paddle protocol 2": (write_paddle, {"protocol": 2}),
}
FILES = {  # the one file each of these writes
    "safetensors": "model.safetensors",
    "torch": "pytorch_model.bin",
    "torch legacy": "pytorch_model.bin",
    "paddle": "model_state.pdparams",
    "paddle protocol 2": "model_state.pdparams",
}


def write(folder: Path, kind: str, tensors=TENSORS, config=TINY, **options) -> Path:
    writer, fixed = FORMATS[kind]
    return writer(folder, tensors, config, **{**fixed, **options})


def read_all(folder: Path, config: CodeGenConfig = TINY) -> dict[str, np.ndarray]:
    with open_checkpoint(folder) as checkpoint:
        checkpoint.check(config)
        for name in checkpoint.names:
            values = checkpoint.read(name)
            assert values.dtype == np.float32
            assert values.flags.c_contiguous
            assert values.flags.writeable
            assert values.shape == checkpoint.shape(name)
        return {name: checkpoint.read(name) for name in checkpoint.names}


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray] = TENSORS) -> None:
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def failure(folder: Path, config: CodeGenConfig = TINY) -> str:
    """The one line that opening, checking and reading everything ends with."""
    with pytest.raises(CheckpointError) as caught:
        read_all(folder, config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("kind", FORMATS)
def test_reads_what_was_written(kind, dtype, shards, tmp_path):
    import torch

    folder = write(tmp_path, kind, dtype=dtype, shards=shards)
    stored = {k: torch.from_numpy(v).to(getattr(torch, dtype)) for k, v in TENSORS.items()}
    assert_equal(read_all(folder), {k: v.float().numpy() for k, v in stored.items()})


def test_expected_shapes_follow_the_configuration():
    assert expected_shapes(TINY) == tensor_shapes(TINY)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("size", ["20KB", "1GB"])
def test_reads_what_transformers_saves(safe, size, tmp_path):
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.CodeGenConfig(**config_json(TINY))
    model = transformers.CodeGenForCausalLM(config)
    model.save_pretrained(tmp_path, safe_serialization=safe, max_shard_size=size)
    assert (size == "20KB") == bool(list(tmp_path.glob("*.index.json")))
    assert CodeGenConfig.from_folder(tmp_path) == TINY
    state = model.state_dict()
    assert_equal(read_all(tmp_path), {name: state[name].numpy() for name in TENSORS})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("size", ["20KB", "1GB"])
def test_reads_what_paddlenlp_saves(safe, size, dtype, tmp_path):
    import paddle
    from paddlenlp.transformers import CodeGenConfig as PaddleConfig
    from paddlenlp.transformers import CodeGenForCausalLM

    paddle.seed(0)
    model = CodeGenForCausalLM(PaddleConfig(**config_json(TINY)))
    model.to(dtype=dtype)
    model.save_pretrained(str(tmp_path), safe_serialization=safe, max_shard_size=size)
    assert (size == "20KB") == bool(list(tmp_path.glob("*.index.json")))
    assert CodeGenConfig.from_folder(tmp_path) == TINY
    state = {k: v.astype("float32").numpy() for k, v in model.state_dict().items()}
    assert_equal(read_all(tmp_path), {name: transposed(name, state[name]) for name in TENSORS})


def test_reads_a_bare_model_and_skips_buffers(tmp_path):
    import torch

    tensors = {name.removeprefix("transformer."): v for name, v in TENSORS.items()}
    state = {name: torch.from_numpy(v) for name, v in tensors.items()}
    for layer in range(TINY.n_layer):
        state[f"h.{layer}.attn.causal_mask"] = torch.ones(8, 8).tril().bool()
        state[f"h.{layer}.attn.masked_bias"] = torch.tensor(-math.inf)
        state[f"h.{layer}.attn.bias"] = torch.ones(1, dtype=torch.uint8).expand(9, 9)
        state[f"h.{layer}.attn.rotary.inv_freq"] = torch.ones(2)
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_equal(read_all(tmp_path))


def test_one_weight_under_two_names_is_an_error(tmp_path):
    write(tmp_path, "torch", TENSORS | {"ln_f.bias": TENSORS["transformer.ln_f.bias"]})
    assert failure(tmp_path) == "pytorch_model.bin: transformer.ln_f.bias is there twice"


@pytest.mark.parametrize("legacy", [True, False])
def test_reads_torch_views_and_parameters(legacy, tmp_path):
    import torch

    state = collections.OrderedDict((k, torch.tensor(v)) for k, v in TENSORS.items())
    state._metadata = collections.OrderedDict({"": {"version": 1}})
    state[QKV] = torch.tensor(TENSORS[QKV].T.copy()).T  # column-major
    wte = TENSORS["transformer.wte.weight"]
    flat = torch.tensor(np.concatenate([np.ones(7, np.float32), wte.ravel()]))
    state["transformer.wte.weight"] = flat[7:].view(wte.shape)
    state["transformer.ln_f.bias"] = torch.nn.Parameter(state["transformer.ln_f.bias"])
    state["step"] = 3
    path = tmp_path / "pytorch_model.bin"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    assert_equal(read_all(tmp_path))


def paddle_state(tensors=TENSORS) -> dict[str, object]:
    return {name: transposed(name, v) for name, v in tensors.items()}


def write_pickle(folder: Path, state: object, protocol: int = 4) -> Path:
    data = pickle.dumps(state, protocol)
    (folder / "model_state.pdparams").write_bytes(data)
    return folder


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_other_things_paddle_files_may_hold(protocol, tmp_path):
    state = paddle_state()
    state[QKV] = np.asfortranarray(state[QKV])
    state["transformer.ln_f.bias"] = ("generated_tensor_0", TENSORS["transformer.ln_f.bias"])
    # Cut as paddle/framework/io_utils.py does with more than 2^30 - 1 bytes.
    name = "transformer.wte.weight"
    whole = state.pop(name)
    parts = {f"{name}@@.{i}": whole.ravel()[i * 1000 : (i + 1) * 1000] for i in range(4)}
    state |= parts
    state["UnpackBigParamInfor@@"] = {name: {"OriginShape": whole.shape, "slices": [*parts]}}
    state["StructuredToParameterName@@"] = {name: "embedding_0.w_0"}
    state["step"] = np.float32(3)
    state["seen"] = np.arange(3)
    found = read_all_floats(write_pickle(tmp_path, state, protocol))
    assert_equal(found)


def read_all_floats(folder: Path) -> dict[str, np.ndarray]:
    with open_checkpoint(folder) as checkpoint:
        checkpoint.check(TINY)
        assert "seen" in checkpoint.names
        with pytest.raises(CheckpointError, match="seen: stored as int64"):
            checkpoint.read("seen")
        return {name: checkpoint.read(name) for name in checkpoint.names if name != "seen"}


def test_reads_arrays_pickled_under_numpy_2(tmp_path):
    write_pickle(tmp_path, paddle_state(), 2)
    path = tmp_path / "model_state.pdparams"
    data = path.read_bytes().replace(b"cnumpy.core.", b"cnumpy._core.")
    path.write_bytes(data)
    assert_equal(read_all(tmp_path))


def test_formats_are_looked_for_in_order(tmp_path):
    other = random_tensors(TINY, seed=1)
    write(tmp_path, "torch", other)
    write(tmp_path, "paddle", other, shards=2)
    assert_equal(read_all(tmp_path), other)
    write(tmp_path, "safetensors", shards=2)
    assert_equal(read_all(tmp_path))
    write(tmp_path, "safetensors", other)
    assert_equal(read_all(tmp_path), other)


def test_no_weights_is_one_line_that_lists_the_names(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        open_checkpoint(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for name in ("model.safetensors", "model_state.pdparams.index.json", "pytorch_model.bin"):
        assert name in message


def test_check_names_tensor_and_shapes(tmp_path):
    name = "transformer.h.1.mlp.fc_in.weight"
    write(tmp_path, "paddle", TENSORS | {name: TENSORS[name][:, :16]})
    assert failure(tmp_path) == (
        f"model_state.pdparams: {name}: expected shape (128, 32), found (128, 16)"
    )
    without = {k: v for k, v in TENSORS.items() if k != "lm_head.weight"}
    write(tmp_path, "safetensors", without)
    assert failure(tmp_path) == "model.safetensors: lm_head.weight is missing"


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_errors(kind, value, tmp_path):
    broken = TENSORS[QKV].copy()
    broken[5, 5] = value
    write(tmp_path, kind, TENSORS | {QKV: broken})
    assert failure(tmp_path).startswith(f"{FILES[kind]}: {QKV}: holds NaN or infinity")


def test_integers_are_no_weights(tmp_path):
    write(tmp_path, "torch", TENSORS, dtype="int32")
    assert "transformer.wte.weight: stored as int32" in failure(tmp_path)


def edit_index(folder: Path, change) -> None:
    path = next(folder.glob("*.index.json"))
    index = json.loads(path.read_text(encoding="utf-8"))
    change(index)
    path.write_text(json.dumps(index), encoding="utf-8")


@pytest.mark.parametrize("kind", FILES)
def test_index_and_shards_must_match(kind, tmp_path):
    index = FILES[kind] + ".index.json"
    folder = write(tmp_path / "a", kind, shards=3)
    shard = sorted(folder.glob("*-00002-of-*"))[0]
    shutil.copy(shard, tmp_path / shard.name)
    for outside in (f"../{shard.name}", str(tmp_path / shard.name), "..", "", "absent", 7):
        edit_index(folder, lambda i, s=outside: i["weight_map"].update({QKV: s}))
        named = checks.shown(outside)
        assert failure(folder) == f"{index}: {named}, for {QKV}, is not a file of this folder"
    elsewhere = sorted(folder.glob("*-00001-of-*"))[0].name
    other = next(n for i, n in enumerate(TENSORS) if i % 3 == 1)
    edit_index(folder, lambda i: i["weight_map"].update({QKV: elsewhere, other: elsewhere}))
    assert "is missing, which the index names" in failure(folder)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1e999}}',
        '{"weight_map": {"a": "\\u0000"}}',
        '{"weight_map": {"a": "%s"}}' % ("b" * 100_000),
        '{"weight_map": {"%s": [[[]]]}}' % ("a\\n" * 10_000),
        '{"weight_map": {"a": %s}}' % ("9" * 4000),
        "[" * 100_000,
        '{"weight_map": {"a": ' + "[" * 100_000,
    ],
    ids=range(12),
)
def test_an_index_that_is_none_is_an_error(content, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    message = failure(tmp_path)
    assert message.startswith("model.safetensors.index.json: ")
    assert len(message) < 600


def test_shards_may_be_links_as_in_a_cache(tmp_path):
    folder = write(tmp_path / "a", "safetensors", shards=2)
    for shard in folder.glob("*.safetensors"):
        shard.rename(tmp_path / shard.name)
        shard.symlink_to(tmp_path / shard.name)
    assert_equal(read_all(folder))


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def malicious_file(kind: str, path: Path, value: object) -> None:
    import torch

    if kind == "paddle":
        path.write_bytes(pickle.dumps(value, 4))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=kind == "torch")


@pytest.mark.parametrize("kind", ["torch", "torch legacy", "paddle"])
@pytest.mark.parametrize(
    ("call", "named"),
    [
        (Call(os.system, "touch sentinel"), "posix.system"),
        (Call(eval, "open('sentinel', 'w')"), "eval"),
        (
            Call(subprocess.check_call, ["touch", "sentinel"]),
            "check_call",
        ),  # "commands." in protocol 2
        (Call(np.load, "sentinel"), "numpy.load"),
    ],
)
def test_pickles_run_nothing(kind, call, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / FILES[kind]
    for value in (call, {"a": {"b": [call]}}, collections.OrderedDict(z=(1, call))):
        malicious_file(kind, path, value)
        message = failure(tmp_path)
        assert message.startswith(f"{path.name}: refused to load ")
        assert message.endswith(f"{named}: a checkpoint may hold tensors only")
    assert os.listdir(tmp_path) == [path.name]


def test_arrays_of_objects_are_refused(tmp_path):
    write_pickle(tmp_path, {"a": np.array([1, "b"], dtype=object)})
    assert failure(tmp_path) == (
        "model_state.pdparams: refused to load an array of type 'O8': not numbers"
    )
    write_pickle(tmp_path, {"a": np.zeros(3, ">f4")})
    assert "not little-endian" in failure(tmp_path)
    write_pickle(tmp_path, {"a": np.zeros(3, [("x", "f4")])})
    assert "type 'V4'" in failure(tmp_path)


def torch_file_with(tmp_path: Path, change) -> Path:
    """A torch file with its pickle, and its checksum, changed."""
    write(tmp_path / "a", "torch")
    source = zipfile.ZipFile(tmp_path / "a/pytorch_model.bin")
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, change(data) if name.endswith("data.pkl") else data)
    return tmp_path


@pytest.mark.parametrize(
    "change",
    {
        # "transformer.wte.weight" is [96, 32] with strides [32, 1].
        "rows beyond the storage": (b"K\x60K \x86", b"K\x61K \x86"),
        "strides beyond the storage": (b"K K\x01\x86", b"KaK\x01\x86"),
        "huge and of stride 0": (b"K\x60K \x86", b"J\xff\xff\xff\x7fK \x86"),
        "negative size": (b"K\x60K \x86", b"J\xff\xff\xff\xffK \x86"),
        "a text for a size": (b"K\x60K \x86", b"U\x01aK \x86"),
        "another storage": (b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x001"),
        "no storage": (b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x00x"),
        "another type": (b"FloatStorage", b"LongStorage"),
    }.items(),
    ids=lambda case: case[0],
)
def test_torch_tensors_must_lie_within_their_storage(change, tmp_path):
    old, new = change[1]
    folder = torch_file_with(tmp_path, lambda data: data.replace(old, new, 1))
    assert failure(folder).startswith("pytorch_model.bin: ")


class State:
    """Pickles as an array of numpy with any state."""

    def __init__(self, shape):
        self.shape = shape

    def __reduce__(self):
        state = (1, self.shape, np.dtype("f4"), False, b"1234")
        return np.core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state


HUGE = [
    (2**62,),
    (2**31, 2**31, 2**31),
    (2**1000,) * 8,
    (2**1000, 0),
    (-1,),
    (-(2**1000),),
    (1,) * 9,
]


@pytest.mark.parametrize("shape", HUGE, ids=range(len(HUGE)))
def test_shapes_that_overflow_name_the_file(shape, tmp_path):
    write_pickle(tmp_path, {"a": State(shape)})
    assert failure(tmp_path).startswith("model_state.pdparams: ")
    state = {"a": np.ones(4, np.float32)}
    state["UnpackBigParamInfor@@"] = {"b": {"OriginShape": shape, "slices": ["a"]}}
    write_pickle(tmp_path, state)
    with pytest.raises(CheckpointError) as caught, open_checkpoint(tmp_path) as checkpoint:
        checkpoint.read("b")
    assert str(caught.value).startswith("model_state.pdparams: ")
    assert len(str(caught.value)) < 500


def integer(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


@pytest.mark.parametrize("value", [2**31, 2**62, 2**64, 2**1000, -1, -(2**62)])
@pytest.mark.parametrize(
    "place",
    {  # of "transformer.wte.weight", which is [96, 32] with strides [32, 1]
        "rows": (b"K\x60K \x86", b"%bK \x86"),
        "stride": (b"K K\x01\x86", b"%bK\x01\x86"),
        "elements": (b"M\x00\x0ctq", b"%btq"),
        "offset": (b"QK\x00K\x60", b"Q%bK\x60"),
    }.items(),
    ids=lambda case: case[0],
)
def test_numbers_beyond_a_torch_file(place, value, tmp_path):
    old, new = place[1]

    def change(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new % integer(value), 1)

    message = failure(torch_file_with(tmp_path, change))
    assert message.startswith("pytorch_model.bin: ")
    assert len(message) < 500


def archive(folder: Path, records: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as target:
        for name, data in records.items():
            target.writestr(name, data)
    return folder


def test_archives_that_are_large_for_nothing_are_refused(tmp_path):
    tensors = pickle.dumps({}, 2)
    names = {f"a/data/{n:060000}": b"" for n in range(72)}
    assert "lists more than tensors" in failure(archive(tmp_path, names))
    assert "is too large" in failure(archive(tmp_path, {"a/data.pkl": bytes(2**25 + 1)}))
    order = {"a/data.pkl": tensors, "a/byteorder": bytes(10**6)}
    assert "is too large" in failure(archive(tmp_path, order))


@pytest.mark.parametrize("kind", ["torch", "torch legacy", "paddle"])
def test_pickles_that_are_large_for_nothing_name_the_file(kind, tmp_path):
    program = b"\x80\x02" + b"]" * 10**6 + b"."
    if kind == "torch":
        archive(tmp_path, {"a/data.pkl": program})
    else:
        (tmp_path / FILES[kind]).write_bytes(program)
    assert failure(tmp_path).startswith(f"{FILES[kind]}: damaged: ")


def test_a_storage_that_many_tensors_share_is_checked_once(tmp_path, monkeypatch):
    import torch

    flat = torch.arange(100_000, dtype=torch.float32)
    state = {f"h.{n}": flat[n * 100 : (n + 1) * 100] for n in range(1000)}
    torch.save(state, tmp_path / "pytorch_model.bin")
    seen = []
    crc32 = zlib.crc32
    monkeypatch.setattr(
        zlib, "crc32", lambda data, *rest: seen.append(len(data)) or crc32(data, *rest)
    )
    with open_checkpoint(tmp_path) as checkpoint:
        seen.clear()
        for n in range(1000):
            values = checkpoint.read(f"transformer.h.{n}")
            np.testing.assert_array_equal(values, np.arange(n * 100, (n + 1) * 100))
        assert sum(seen) == 400_000
    path = tmp_path / "pytorch_model.bin"
    data = bytearray(path.read_bytes())
    data[data.index(flat.numpy().tobytes()) + 399_999] ^= 1
    path.write_bytes(data)
    with open_checkpoint(tmp_path) as checkpoint:
        for _ in range(2):
            with pytest.raises(CheckpointError, match="checksum does not match"):
                checkpoint.read("transformer.h.0")


def test_headers_and_names_of_safetensors_are_bounded(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes((2**24 + 1).to_bytes(8, "little") + b" " * (2**24 + 1))
    assert failure(tmp_path) == "model.safetensors: damaged: its header has 16,777,217 bytes"
    header = json.dumps({"a\n" * 500: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}})
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    assert failure(tmp_path) == "model.safetensors: damaged: a tensor's name has 1,000 characters"
    header = json.dumps({"a\nb": {"dtype": "F64", "shape": [2**63, 4], "data_offsets": [0, 0]}})
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    assert failure(tmp_path).startswith("model.safetensors: truncated or damaged: ")
    for content in ("[" * 10**5, '{"__metadata__": ' * 9999, '{"a": 1e999}', "\0", "\n\n", "é\n"):
        path.write_bytes(len(content.encode()).to_bytes(8, "little") + content.encode())
        assert failure(tmp_path).startswith("model.safetensors: truncated or damaged: ")


def test_records_of_an_archive_are_checked(tmp_path):
    folder = write(tmp_path, "torch")
    path = folder / "pytorch_model.bin"
    data = bytearray(path.read_bytes())
    data[data.index(TENSORS[QKV].tobytes()) + 100] ^= 1
    path.write_bytes(data)
    assert failure(folder) == f"{path.name}: {QKV}: damaged: its checksum does not match"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("a/data.pkl", bytes(10**6))
    assert "compressed" in failure(folder)


@pytest.mark.parametrize("kind", FILES)
def test_any_truncation_is_noticed(kind, tmp_path):
    path = write(tmp_path, kind) / FILES[kind]
    data = path.read_bytes()
    rng = random.Random(0)
    ends = [0, 1, 4, 8, 100, len(data) - 1, *(rng.randrange(len(data)) for _ in range(40))]
    for end in ends:
        path.write_bytes(data[:end])
        assert failure(tmp_path).startswith(f"{path.name}: ")


def test_a_file_cut_while_it_is_open_is_an_error(tmp_path):
    for kind in FILES:
        path = write(tmp_path / kind, kind) / FILES[kind]
        with open_checkpoint(path.parent) as checkpoint:
            os.truncate(path, 200)
            with pytest.raises(CheckpointError, match="truncated"):
                checkpoint.read("lm_head.weight")


@pytest.mark.parametrize("kind", FILES)
def test_flipped_bits_give_arrays_or_one_line(kind, tmp_path):
    config = CodeGenConfig(
        vocab_size=5, n_positions=8, n_embd=8, n_layer=1, n_head=4, rotary_dim=2, n_inner=16
    )
    path = write(tmp_path, kind, random_tensors(config), config) / FILES[kind]
    intact = path.read_bytes()
    rng = random.Random(kind)
    shapes, errors = expected_shapes(config), 0
    for case in range(400):
        data = bytearray(intact)
        for _ in range(1 + case % 3):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        message = ""
        try:
            found = read_all(tmp_path, config)
        except CheckpointError as error:
            message = str(error)
            errors += 1
        assert "\n" not in message
        if message:
            assert message.startswith(f"{path.name}: ")
        else:
            assert {name: found[name].shape for name in shapes} == shapes
    assert errors > 30  # flips in headers and pickles; those in data may go unnoticed


def test_identity_tells_folders_apart(tmp_path):
    def identity(folder: Path) -> str:
        with open_checkpoint(folder) as checkpoint:
            first = checkpoint.identity()
            checkpoint.read("lm_head.bias")
            assert checkpoint.identity() == first
            return first

    folder = write(tmp_path / "a", "safetensors", shards=2)
    before = identity(folder)
    assert identity(folder) == before
    shutil.copytree(folder, tmp_path / "b")  # keeps the times
    assert identity(tmp_path / "b") == before
    shard = sorted(folder.glob("*.safetensors"))[1]
    os.utime(shard, ns=(0, shard.stat().st_mtime_ns + 1))
    assert identity(folder) != before
    assert identity(write(tmp_path / "c", "safetensors", random_tensors(TINY, 1))) != before


@pytest.mark.parametrize("kind", FILES)
def test_a_tensor_needs_memory_for_itself_only(kind, tmp_path):
    config = CodeGenConfig(
        vocab_size=64, n_positions=8, n_embd=256, n_layer=16, n_head=4, rotary_dim=2, n_inner=1024
    )
    folder = write(tmp_path, kind, random_tensors(config), config)  # 51 MB, the largest 1 MB
    tracemalloc.start()
    with open_checkpoint(folder) as checkpoint:
        checkpoint.check(config)
        for name in checkpoint.names:
            checkpoint.read(name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20


def test_closing_closes_the_files(tmp_path):
    folder = write(tmp_path, "torch", shards=2)
    checkpoint = open_checkpoint(folder)
    checkpoint.close()
    assert checkpoint.names
    with pytest.raises(ValueError, match="closed file"):
        checkpoint.read("lm_head.bias")


def test_reads_without_torch_and_paddle():
    program = (
        "import sys; from paddlenlp_codegen_task.model.checkpoint import open_checkpoint;"
        "print([m for m in ('torch', 'paddle', 'paddlenlp') if m in sys.modules])"
    )
    # The package's own __init__ may register a task, and for that import PaddleNLP.
    stub = "import sys, types; p = types.ModuleType('paddlenlp_codegen_task');"
    root = Path(__file__).parents[2]
    stub += f"p.__path__ = [{str(root / 'paddlenlp_codegen_task')!r}];"
    stub += "sys.modules['paddlenlp_codegen_task'] = p;"
    done = subprocess.run([sys.executable, "-c", stub + program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
