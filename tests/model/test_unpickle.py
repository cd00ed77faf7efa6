"""The pickle machine: reads what pickles of tensors hold, runs nothing, reserves nothing."""

from __future__ import annotations

import io
import os
import pickle
import time
import tracemalloc
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddlenlp_codegen_task.model import unpickle as machine
from paddlenlp_codegen_task.model.stored_tensor import CheckpointError
from paddlenlp_codegen_task.model.unpickle import Span, unpickle


def empty_dict() -> dict[str, object]:
    return {}


ALLOWED = {("collections", "OrderedDict"): empty_dict}

leaves = st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats(allow_nan=False)
values = st.recursive(
    leaves | st.text(max_size=60),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(st.text(max_size=9), inner, max_size=5)
    ),
)


def load(data: bytes) -> object:
    return unpickle(io.BytesIO(data), ALLOWED)


@given(values, st.sampled_from([2, 3, 4, 5]))
def test_reads_plain_values_as_pickle_does(value, protocol):
    assert load(pickle.dumps(value, protocol)) == value


def test_shared_values_stay_shared():
    part = ["x"]
    first, second = load(pickle.dumps([part, part], 4))
    assert first is second


def test_an_ordered_dict_becomes_a_dict_without_its_attributes():
    state = OrderedDict(a=1, b=2)
    state._metadata = {"": {"version": 1}}
    assert load(pickle.dumps(state, 2)) == {"a": 1, "b": 2}


def test_leaves_bytes_and_long_texts_in_the_file():
    text = "é" * 1000
    data = pickle.dumps([b"12345", text], 4)
    assert load(data) == [
        Span(data.index(b"12345"), 5),
        Span(data.index(text.encode()), 2000, is_text=True),
    ]


def test_leaves_the_file_right_behind_the_pickle():
    file = io.BytesIO(pickle.dumps({"a": b"x" * 9000}, 2) + pickle.dumps([1], 4) + b"rest")
    unpickle(file, {("_codecs", "encode"): lambda text, _: text})
    assert unpickle(file, {}) == [1]
    assert file.read() == b"rest"


def test_persistent_ids_go_to_the_callers_function():
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return ("outside", obj.real) if isinstance(obj, complex) else None

    file = io.BytesIO()
    Pickler(file, 2).dump([1j + 7])
    file.seek(0)
    assert unpickle(file, {}, lambda reference: reference) == [("outside", 7.0)]
    file.seek(0)
    with pytest.raises(CheckpointError):
        unpickle(file, {})


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class WithState:
    def __setstate__(self, state):
        os.mkdir(state)

    def __getstate__(self):
        return "sentinel"


MALICIOUS = {
    "reduce": (Call(os.mkdir, "sentinel"), "posix.mkdir"),
    "eval": (Call(eval, "__import__('os').mkdir('sentinel')"), "builtins.eval"),
    "nested": ({"a": [1, (Call(os.mkdir, "sentinel"),)]}, "posix.mkdir"),
    "as a key": ({Call(os.mkdir, "sentinel"): 1}, "posix.mkdir"),
    "setstate": (WithState(), "WithState"),
    "getattr": (Call(getattr, "", "join"), "builtins.getattr"),
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("case", MALICIOUS)
def test_refuses_and_names_any_other_global(case, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value, named = MALICIOUS[case]
    data = pickle.dumps(value, protocol)
    named = named.replace("builtins", "__builtin__") if protocol == 2 else named
    with pytest.raises(CheckpointError, match=rf"refused to load \S*{named}: a checkpoint may"):
        load(data)
    assert not list(tmp_path.iterdir())


HANDWRITTEN = {
    "GLOBAL": b"cposix\nmkdir\n(X\x08\x00\x00\x00sentineltR.",
    "STACK_GLOBAL": b"\x8c\x05posix\x8c\x05mkdir\x93\x8c\x08sentinel\x85R.",
    "dotted": b"\x8c\x0bcollections\x8c\x18OrderedDict.__init__.x.y\x93)R.",
    "dotted module": b"\x8c\x17collections.OrderedDict\x8c\x08__init__\x93)R.",
    "INST": b"(X\x08\x00\x00\x00sentineliposix\nmkdir\n.",
    "INST protocol 0": b"(S'sentinel'\niposix\nmkdir\n.",
    "OBJ": b"(cposix\nmkdir\nX\x08\x00\x00\x00sentinelo.",
    "NEWOBJ": b"ccollections\nOrderedDict\n)\x81.",
    "EXT1": b"\x82\x01.",
    "call a text": b"X\x01\x00\x00\x00a)R.",
    "call with a list": b"ccollections\nOrderedDict\n]R.",
    "call with arguments": b"ccollections\nOrderedDict\n]\x85R.",
    "build a list": b"]}b.",
    "build a function": b"ccollections\nOrderedDict\n}b.",
    "name of another kind": b"K\x01K\x02\x93.",
    "name of two lines": b"\x8c\x03a\nb\x8c\x03c\nd\x93.",
    "persistent id": b"Pname\n.",
}


@pytest.mark.parametrize("program", HANDWRITTEN.values(), ids=HANDWRITTEN)
def test_refuses_handwritten_programs(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load(program)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


CRAFTED = {
    # pickle.Unpickler sizes its memo by the index: 32 GiB here.
    "memo index": b"Nr\xff\xff\xff\x7f",
    "length of bytes": b"\x8e" + (2**62).to_bytes(8, "little") + b".",
    "length of text": b"\x8d" + (2**40).to_bytes(8, "little") + b".",
    "length of integer": b"\x8b\xff\xff\xff\x7f.",
    "frame length": b"\x95" + (2**62).to_bytes(8, "little"),
    "frame within an instruction": b"\x95" + (4).to_bytes(8, "little") + b"NNJ\0\0\0\0.",
    "frame within a frame": (b"\x95" + (30).to_bytes(8, "little")) * 2 + b"N" * 29 + b".",
    "frame behind the pickle": b"\x95" + (9).to_bytes(8, "little") + b"N." + bytes(9),
    # Hashing these as a key overflows the C stack, or takes 2^60 steps.
    "deep key": b"}" + b"N" + b"\x85" * 200_000 + b"Ns.",
    "wide key": b"}N" + b"q\x00h\x00\x86" * 60 + b"Ns.",
    "deep nesting": b"(" * 200_000 + b"l" * 200_000,
    "nothing on the stack": b"0" * 1000,
    "text as long as it says, but no UTF-8": b"X\x02\x00\x00\x00\xff\xff.",
    "line without end": b"c" + b"a" * 10_000,
}


@pytest.mark.parametrize("program", CRAFTED.values(), ids=CRAFTED)
def test_crafted_sizes_cost_neither_memory_nor_time(program):
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(CheckpointError):
        load(program)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - began < 5
    assert peak < 2**26


def several(instructions: bytes, times: int = 400) -> bytes:
    """A list that is filled, a thousand times `instructions` at once, so many times."""
    return b"]" + (b"(" + instructions * 1000 + b"e") * times + b"."


ALLOWED_CALL = b"ccollections\nOrderedDict\nq\x01"
# Programs of a byte or a few for an object of fifty and more.
LARGE = {
    "24 MB of lists": b"]" * 24_000_000 + b".",
    "marks": b"(" * 3_000_000 + b".",
    "nested tuples": b"N" + b"\x85" * 3_000_000 + b".",
    "nested lists": b"]" * 5000 + b"a" * 4999 + b".",
    "lists": several(b"]", 3000),
    "dictionaries": several(b"}", 3000),
    "bytes": several(b"C\x00", 3000),
    "texts": several(b"\x8c\x02ab", 2000),
    "floats": several(b"G12345678", 1000),
    "calls": ALLOWED_CALL + b")q\x02" + several(b"h\x01h\x02R", 1000),
    "memo": b"N" + b"".join(b"r" + (n << 12).to_bytes(4, "little") for n in range(2**20)) + b".",
    "a list of itself": b"]q\x00h\x00a.",
    "a list of itself, often": b"]q\x00" + b"h\x00a" * 10**6 + b".",
    "a list within its dictionary": b"}q\x00\x8c\x01a]h\x00as.",
    "from the top down": b"]q\x00" + b"]q\x01ah\x01" * 3000 + b"h\x00.",
    "doubled 200 times": b"]q\x00" + b"h\x00h\x00\x86q\x00" * 200 + b".",
    "wide and deep": b"]q\x00(" + b"N" * 8000 + b"e" + b"](h\x00h\x00eq\x00" * 60 + b".",
    "long arguments": ALLOWED_CALL + b"(" + b"N" * 6000 + b"tq\x02" + b"h\x01h\x02R0" * 9**5 + b".",
    "a long identity": b"(" + b"N" * 6000 + b"tq\x02" + b"h\x02Q0" * 9**5 + b".",
}
REFUSED = r"damaged: not a (valid pickle|pickle of tensors)"


@pytest.mark.parametrize("case", LARGE)
def test_a_pickle_that_is_large_for_nothing_is_refused(case, monkeypatch):
    # Memory is in proportion to the instructions; an eighth of them takes less of a test's time.
    most = machine._MOST_INSTRUCTIONS // 8
    monkeypatch.setattr(machine, "_MOST_INSTRUCTIONS", most)
    file = io.BytesIO(LARGE[case])
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=REFUSED):
            unpickle(file, ALLOWED, lambda reference: reference)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 120 * most
    assert file.tell() < 12 * most


@pytest.mark.parametrize("case", ["24 MB of lists", "nested tuples", "bytes"])
def test_it_is_refused_soon(case):
    began = time.process_time()
    with pytest.raises(CheckpointError, match=REFUSED):
        load(LARGE[case])
    assert time.process_time() - began < 20  # about 1 s on a slow machine


def test_a_pickle_at_its_limits_takes_little():
    # As many containers at every level as the instructions allow; deep as it may be.
    wide = b"]q\x01" + (b"(" + b"N" * 8000 + b"e") * 50 + b"]q\x00"
    program = wide + b"](h\x00h\x01eq\x00" * 30 + b"."
    began = time.process_time()
    load(program)
    assert time.process_time() - began < 20  # 0.8 s on a slow machine


def test_containers_may_be_as_deep_as_that():
    value = within = []
    for _ in range(31):
        within.append([])
        within = within[0]
    assert load(pickle.dumps(value, 2)) == value
    within.append({"a": 1})
    with pytest.raises(CheckpointError, match="nested too deeply"):
        load(pickle.dumps(value, 2))


def test_as_many_tensors_as_any_checkpoint_has_are_read():
    state = {f"transformer.h.{n}.attn.weight": (n, (n, "cpu"), {"a": [n]}) for n in range(12_000)}
    for protocol in (2, 4):
        assert load(pickle.dumps(state, protocol)) == state


def test_every_truncation_is_noticed():
    data = pickle.dumps({"a": [1, 2.5, "text", b"bytes"], "b": (None, True, 2**70)}, 4)
    for end in range(len(data)):
        with pytest.raises(CheckpointError, match=r"truncated|damaged"):
            load(data[:end])
