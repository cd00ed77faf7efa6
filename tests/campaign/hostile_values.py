"""Values for options, as Python expressions so that they can be kept, and which must be refused."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import numpy as np


class ManyLines:
    """An object that shows itself in several lines."""

    def __repr__(self) -> str:
        return "several\nlines\r\n" * 3


class LongRepr:
    """An object that shows itself at length."""

    def __repr__(self) -> str:
        return "long" * 100_000


class NoRepr:
    """An object that cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("cannot be shown")


class OddInt(int):
    """An integer that shows itself as more than one."""

    def __repr__(self) -> str:
        return "odd\nint"

    __str__ = __repr__


class OddStr(str):
    """A string that shows itself in two lines."""

    def __repr__(self) -> str:
        return "odd\nstr"


class Two(IntEnum):
    """An integer by another name."""

    TWO = 2


class Unequal:
    """An object that cannot be compared."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("cannot be compared")

    __hash__ = None  # type: ignore[assignment]


_NAMES: dict[str, Any] = {
    "np": np,
    "itertools": itertools,
    "Decimal": Decimal,
    "Fraction": Fraction,
    "Path": Path,
    **{kind.__name__: kind for kind in (ManyLines, LongRepr, NoRepr, OddInt, OddStr, Two, Unequal)},
}

ANYTHING = [
    *("None", "True", "False", "np.bool_(True)", "0", "1", "2", "3", "-1", "np.int64(2)"),
    *("np.uint8(1)", "np.int16(-3)", "2**31", "2**63", "2**64", "-(2**64)", "10**400", "10**5000"),
    *("0.0", "-0.0", "0.5", "1.0", "1.5", "1e300", "5e-324", "-1e-9", "np.float32(2)"),
    *("np.float64(0.3)", "np.float16(0.5)", "float('nan')", "float('inf')", "-float('inf')"),
    *("np.float32('nan')", "Fraction(1, 3)", "Fraction(2)", "Fraction(10**400)", "Decimal('1')"),
    *("Decimal('nan')", "1j", "np.complex64(1)", "''", "'1'", "b'1'", "'two\\nlines'"),
    *(
        "'x' * 100_000",
        "'\\ud800'",
        "'\\0'",
        "[]",
        "[1]",
        "(1,)",
        "{1}",
        "{}",
        "{1: 2}",
        "range(3)",
    ),
    *("np.arange(3)", "np.array(2)", "np.ones((300, 300))", "np.array(['a'])", "object()", "print"),
    *("int", "...", "ManyLines()", "LongRepr()", "NoRepr()", "Unequal()", "OddInt(2)", "Two.TWO"),
    *("[ManyLines()]", "[LongRepr()] * 100", "bytearray(3)", "memoryview(b'ab')", "OddStr('a')"),
    *("[[[[[[]]]]]]", "np.datetime64('2020-01-01')", "np.str_('a')", "iter([1])"),
]
_TEXTS = [
    *(
        "'python'",
        "'java'",
        "'salesforce'",
        "'Python'",
        "'py'",
        "'c++'",
        "'rust'",
        "'\\n\\n'",
        "'('",
    ),
    *("'[[a]'", "'[a--b]'", r"'(?:\\w++\\s?)++:'", "'(?i)class'", "'(?>a+)b'", "'a{4294967296}'"),
    *("'(' * 5000 + ')' * 5000", "'(?:' * 500 + 'a' + ')*' * 500", r"'\\1'", "'(?P<n>a)(?P<n>b)'"),
    *("'a' * 100_000", "['\\n\\n', '']", "['\\nclass', '\\ndef']", "['stop'] * 20_000", "[b'x']"),
    *("['a', ['b']]", "('a', 'b')", "[OddStr('a')]", "[str(n) for n in range(20_000)]", "'(?x'"),
    *("'|'", "'a||b'", "'(?<=a*)b'", "'(?P<' + 'n' * 9999 + '>a)'", "'\\ud800'", "'[\\\\d-z]'"),
]
_TOKENS = [
    *("[1, 2]", "range(200)", "range(257)", "range(10**9)", "np.arange(5)", "itertools.count()"),
    *(
        "[True]",
        "[-1]",
        "[2**70]",
        "[256]",
        "[257]",
        "[np.int64(4)]",
        "[1.0]",
        "(n for n in [1, 2])",
    ),
    *("[ManyLines()]", "{1, 2}", "{1: 2}", "itertools.repeat(1)", "['a']", "[None]", "[10**5000]"),
]
_BIASES = [
    *("{1: 2.0}", "{np.int64(3): np.float32(1)}", "{True: 1}", "{1: float('nan')}", "{-1: 1}"),
    *(
        "{2**70: 1}",
        "{300: 1.0}",
        "{'a': 1}",
        "{1: 10**400}",
        "{1: 1e39}",
        "{1: -1e300}",
        "{1: '2'}",
    ),
    *("dict.fromkeys(range(257), -1e300)", "dict.fromkeys(range(100_000), 1)", "[(1, 2)]"),
    *("{1: ManyLines()}", "{1: True}", "{None: 1}", "{1: None}", "{1: np.ones(3)}", "{1.0: 1}"),
]
_CHOICES = [
    *(
        "'sampling'",
        "'greedy_search'",
        "'beam_search'",
        "'Sampling'",
        "'greedy_search '",
        "'greedy'",
    ),
    *("'error'", "'truncate_left'", "'never'", "'auto'", "'onnxruntime'", "'paddle'", "'fp32'"),
    *("'int8'", "'int9'", "'fp16'", "'int4'", "'int8_weight_only'", "'cpu'", "'gpu'", "'gpu:7'"),
    *("'gpu:x'", "'cuda'", "'cpu:0'", "np.str_('cpu')", "'tpu'", "['cpu']", "'gpu:' + '9' * 5000"),
]
PATHS = [
    *(
        "3",
        "0",
        "b'x'",
        "'~nosuchuser'",
        "'~'",
        "'a' * 5000",
        "'x\\0y'",
        "'loop'",
        "'loop/x'",
        "''",
    ),
    *("'file'", "'file/x'", "'/dev/null/x'", "'.'", "'home-1'", "Path('home-1')", "Path('file')"),
    *("'two\\nlines'", "'\\ud800'", "'a/b/c'", "'../home-2'", "'/proc/nothing'", "'gpt2'"),
]

_INTEGERS = {  # with the least they may be
    **dict.fromkeys(("num_beams", "num_return_sequences", "best_of"), 1),
    **dict.fromkeys(("batch_size", "num_threads", "kv_cache_bytes"), 1),
    **dict.fromkeys(("min_length", "top_k", "logprobs", "seed", "prefix_cache_bytes"), 0),
    **dict.fromkeys(("max_length", "prompt_logprobs"), 0),  # 0 is possible with the other
}
_MAY_BE_NONE = {
    *("best_of", "logprobs", "seed", "num_threads", "kv_cache_bytes", "logit_bias", "truncation"),
    *("stop", "suppress_tokens", "prompt_lookup", "home_path", "draft_model", "progress"),
    *("prompt_logprobs", "stop_token_ids"),
}
_NUMBERS: dict[str, Callable[[float], bool]] = {
    "temperature": lambda x: x > 0,
    "top_p": lambda x: 0 < x <= 1,
    "min_p": lambda x: 0 <= x < 1,
    "repetition_penalty": lambda x: x > 0,
    "presence_penalty": lambda x: -2 <= x <= 2,
    "frequency_penalty": lambda x: -2 <= x <= 2,
    "length_penalty": lambda x: -10 <= x <= 10,
}
_BOOLEANS = {
    *("output_scores", "ignore_eos", "prompt_lookup", "from_hf_hub", "static_mode", "cuda_graph"),
    *("progress", "is_static_model", "token_healing", "allow_special_tokens"),
}
_ONE_OF = {
    "decode_strategy": {"sampling", "greedy_search", "beam_search"},
    "prompt_overflow": {"error", "truncate_left"},
    "engine": {"auto", "onnxruntime", "paddle"},
    "precision": {"auto", "fp32", "fp16", "int8", "int8_weight_only", "int4", "int4_int8"},
    "kv_precision": {"auto", "int8"},
}

GENERATION = [
    *("max_length", "min_length", "decode_strategy", "temperature", "top_k", "top_p", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "num_beams"),
    *("suppress_tokens", "length_penalty", "early_stopping", "num_return_sequences", "best_of"),
    *("logprobs", "output_scores", "seed", "truncation", "stop", "ignore_eos", "prompt_lookup"),
    *("prompt_overflow", "prompt_logprobs", "stop_token_ids", "token_healing"),
    "allow_special_tokens",
]
LOADING = [
    *("engine", "precision", "device", "num_threads", "home_path", "from_hf_hub", "static_mode"),
    *("cuda_graph", "batch_size", "kv_cache_bytes", "prefix_cache_bytes", "draft_model"),
    *("qkv_groups", "adapter", "kv_precision"),
]
_OWN = {
    "truncation": _TEXTS,
    "stop": _TEXTS,
    "suppress_tokens": _TOKENS,
    "stop_token_ids": _TOKENS,
    "logit_bias": _BIASES,
    **dict.fromkeys(("home_path", "draft_model", "adapter", "name_or_path", "task_path"), PATHS),
    **dict.fromkeys((*_ONE_OF, "early_stopping", "device"), _CHOICES),
}


def draw_value(random: Random, name: str) -> str:
    """An expression for an option: half of those that have values of their own get one of them."""
    own = _OWN.get(name)
    return random.choice(own if own and random.randrange(3) else ANYTHING)


def evaluated(expression: str) -> Any:
    """The value of an expression that this module made."""
    return eval(expression, dict(_NAMES))


def must_be_refused(name: str, value: Any) -> bool:
    """Whether a value is certainly none for this option; False if that depends, or is arguable."""
    if value is None:
        return name in {*_INTEGERS, *_NUMBERS, *_BOOLEANS, *_ONE_OF} - _MAY_BE_NONE
    is_boolean = isinstance(value, (bool, np.bool_))
    if name in _BOOLEANS:
        return not is_boolean
    if name in _ONE_OF:
        return not isinstance(value, str) or str(value) not in _ONE_OF[name]
    if name in _INTEGERS:
        if isinstance(value, (int, np.integer)) and not is_boolean:
            return int(value) < _INTEGERS[name]
        return not isinstance(value, (Fraction, Decimal, np.ndarray))
    if name in _NUMBERS:
        if isinstance(value, (int, float, np.integer, np.floating)) and not is_boolean:
            try:
                number = float(value)
            except OverflowError:
                return True
            return not (math.isfinite(number) and _NUMBERS[name](number))
        return not isinstance(value, (Fraction, Decimal, np.ndarray))
    if name in ("truncation", "stop"):
        listed = list(value) if isinstance(value, (list, tuple)) else [value]
        return not all(isinstance(one, str) and one for one in listed)
    if name == "early_stopping":
        return not (is_boolean or (isinstance(value, str) and value == "never"))
    if name == "home_path":
        return isinstance(value, (bool, int, float, complex, list, dict, set, tuple))
    return False


def is_plain(value: object) -> bool:
    """Whether a value is one of Python's own, with all that it holds."""
    if isinstance(value, dict):
        return all(map(is_plain, [*value.keys(), *value.values()]))
    if isinstance(value, (tuple, list)):
        return all(map(is_plain, value))
    return type(value) in (int, float, str, bool, type(None))
