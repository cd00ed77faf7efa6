"""CodeGenerator: text in, text out, the same in any batch and from any thread."""

from __future__ import annotations

import copy
import pickle
import re
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_probe import at_work, gather, look, steps_of
from random_models import generator_of, open_model, spread_tensors, write_model

from paddlenlp_codegen_task import CodeGenerator, Completion, GenerationConfig
from paddlenlp_codegen_task.decoding.events import Forward
from paddlenlp_codegen_task.generator import DEFAULT_BATCH_SIZE
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.runtime.base import StepOutput
from paddlenlp_codegen_task.truncation import DEFAULT_TRUNCATION

EOS = 256
CONFIG = CodeGenConfig(
    vocab_size=300,
    n_positions=160,
    n_embd=64,
    n_layer=2,
    n_head=4,
    rotary_dim=16,
    n_inner=128,
    eos_token_id=EOS,
)
PROMPTS = [
    "def",
    "import os\nimport sys\n\n\ndef main(argv):\n    for name in argv[1:]:\n",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
    "x = [",
    "# 你好, 世界\n",
    "def add(a, b):",
    "\n".join(f"value_{n} = {n} * {n}" for n in range(40)),
    " ",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
]
GREEDY: dict[str, Any] = {"decode_strategy": "greedy_search", "truncation": None}
SAMPLING: dict[str, Any] = {"temperature": 1.5, "top_k": 40, "truncation": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights over bytes, ending a text now and then."""
    tensors = spread_tensors(CONFIG, seed=4)
    tensors["lm_head.bias"][EOS] += 4.5
    return write_model(tmp_path_factory.mktemp("random"), CONFIG, tensors)


@pytest.fixture(scope="module")
def generator(folder: Path, home_path: Path) -> Iterator[CodeGenerator]:
    with generator_of(open_model(folder, home_path)) as one:
        yield one


@pytest.fixture(params=["builtin", "generator"])
def either(request: pytest.FixtureRequest) -> CodeGenerator:
    """The built-in model, and the random one."""
    return request.getfixturevalue(request.param)


def fitting(generator: CodeGenerator, max_length: int) -> list[str]:
    room = generator.config.n_positions - max_length
    return [one for one in PROMPTS if len(generator.tokenizer.encode(one)) <= room]


@pytest.mark.parametrize("options", [GREEDY, {**SAMPLING, "seed": 3}], ids=["greedy", "sampling"])
def test_a_prompt_completes_the_same_alone_and_in_any_batch(
    either: CodeGenerator, options: dict[str, Any]
):
    prompts = fitting(either, 24)
    assert len(prompts) >= 7
    options = {**options, "max_length": 24}
    alone = [either.generate(one, **options)[0] for one in prompts]
    assert len({completion.token_ids for [completion] in alone}) > len(prompts) // 2
    for batch_size in (1, 2, 3, 8):
        assert either.generate(prompts, batch_size=batch_size, **options) == alone
    backwards = either.generate(prompts[::-1], batch_size=4, **options)
    assert backwards[::-1] == alone


def test_an_early_end_does_not_disturb_the_others(generator: CodeGenerator):
    prompts = [chr(n) * (n % 7 + 1) for n in range(65, 105)]
    found = generator.generate(prompts, max_length=30, **SAMPLING, seed=0, batch_size=5)
    reasons = [completion.finish_reason for [completion] in found]
    assert reasons.count("eos") >= 5
    assert reasons.count("length") >= 3
    for prompt, completions in zip(prompts, found, strict=True):
        assert generator.generate(prompt, max_length=30, **SAMPLING, seed=0)[0] == completions


def test_completion(either: CodeGenerator):
    for [completion] in either.generate(fitting(either, 30), max_length=30, **GREEDY):
        assert isinstance(completion, Completion)
        assert completion.text == either.tokenizer.decode(completion.token_ids)
        assert completion.finish_reason in ("eos", "length")
        assert (len(completion.token_ids) == 30) == (completion.finish_reason == "length")
        assert either.tokenizer.eos_token_id not in completion.token_ids


def test_a_completion_tells_how_many_tokens_its_prompt_has(either: CodeGenerator):
    prompts = fitting(either, 5)
    found = either.generate(prompts, max_length=5, num_return_sequences=2, **SAMPLING)
    for prompt, completions in zip(prompts, found, strict=True):
        tokens = len(either.tokenizer.encode(prompt))
        assert [one.prompt_tokens for one in completions] == [tokens, tokens]
    room = either.config.n_positions - 5
    long = "x = 1\n" * room
    [[cut]] = either.generate(long, max_length=5, prompt_overflow="truncate_left", **GREEDY)
    assert cut.prompt_tokens == room  # as far as it was used


def test_one_prompt_is_a_list_of_one(generator: CodeGenerator):
    assert generator.generate("ab", max_length=9, **GREEDY) == generator.generate(
        ("ab",), max_length=9, **GREEDY
    )


def test_num_return_sequences(either: CodeGenerator):
    options = {**SAMPLING, "max_length": 20, "seed": 5}
    prompts = PROMPTS[:2]
    found = either.generate(prompts, num_return_sequences=4, **options)
    assert [len(completions) for completions in found] == [4, 4]
    for prompt, completions in zip(prompts, found, strict=True):
        assert len({completion.token_ids for completion in completions}) == 4
        assert either.generate(prompt, **options) == [completions[:1]]
        # How many are asked for, and what runs beside them, changes none of them.
        fewer = either.generate(prompt, num_return_sequences=3, batch_size=2, **options)
        assert fewer == [completions[:3]]


def test_seeds(generator: CodeGenerator):
    def texts(**options: Any) -> list[tuple[int, ...]]:
        found = generator.generate("seed", max_length=12, num_return_sequences=3, **options)
        return [completion.token_ids for completion in found[0]]

    wide = {**SAMPLING, "temperature": 3.0, "top_k": 0}
    assert texts(seed=1, **wide) == texts(seed=1, **wide)
    assert texts(seed=2**70, **wide) == texts(seed=2**70, **wide)
    assert not set(texts(seed=1, **wide)) & set(texts(seed=2, **wide))
    assert not set(texts(seed=None, **wide)) & set(texts(seed=None, **wide))
    assert len(set(texts(seed=None, **wide))) == 3
    assert texts(**GREEDY) == texts(**GREEDY)
    assert len(set(texts(**GREEDY))) == 1


def test_threads_get_what_they_would_get_in_turn(either: CodeGenerator):
    prompts = fitting(either, 16)
    calls: list[tuple[list[str], dict[str, Any]]] = [
        (
            prompts[n % 3 : n % 3 + 1 + n % 4],
            {**(GREEDY if n % 2 else {**SAMPLING, "seed": n}), "max_length": 4 + n % 5},
        )
        for n in range(16)
    ]
    serial = [either.generate(one, **options) for one, options in calls]
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(either.generate, one, **options) for one, options in calls]
        assert [future.result() for future in futures] == serial


@pytest.mark.parametrize("kind", ["default", "regex", "list", "none"])
def test_truncation(either: CodeGenerator, kind: str):
    prompts = fitting(either, 30)
    options = {**GREEDY, "max_length": 30, "min_length": 30}
    whole = either.generate(prompts, **options)
    some = [full.text[n + 3 : n + 5] for n, [full] in enumerate(whole) if len(full.text) > 15]
    assert len(some) >= 3
    truncation: str | list[str] | None = {
        "default": DEFAULT_TRUNCATION,
        "regex": "|".join(map(re.escape, some)),
        "list": [f"(?:{re.escape(one)})" for one in some],  # a word would be no regex
        "none": None,
    }[kind]
    found = either.generate(prompts, **{**options, "truncation": truncation})
    stopped = 0
    for [full], [cut] in zip(whole, found, strict=True):
        assert cut.token_ids == full.token_ids[: len(cut.token_ids)]
        if truncation is None:
            assert cut == full
            continue
        patterns = [truncation] if isinstance(truncation, str) else truncation
        starts = [match.start() for one in patterns if (match := re.search(one, full.text))]
        assert cut.text == full.text[: min(starts, default=None)].rstrip()
        if cut.finish_reason == "stop":
            assert starts
            stopped += 1
        else:
            assert (cut.token_ids, cut.finish_reason) == (full.token_ids, full.finish_reason)
    if kind in ("regex", "list"):
        assert stopped >= 3


def test_stopping_saves_steps(generator: CodeGenerator):
    [[completion]] = generator.generate("s", max_length=100, **{**GREEDY, "truncation": "."})
    assert completion.text == ""
    assert completion.finish_reason == "stop"
    assert len(completion.token_ids) < 10


def test_truncation_is_the_seed_rule_unless_told(folder: Path, home_path: Path):
    assert GenerationConfig().truncation == DEFAULT_TRUNCATION
    where = {"home_path": home_path, "device": "cpu", "engine": "paddle", "num_threads": 1}
    with CodeGenerator.from_pretrained(
        folder, max_length=7, batch_size=2, truncation="[a-z]", **where
    ) as one:
        [[default]] = one.generate("q", decode_strategy="greedy_search")
        [[whole]] = one.generate("q", **GREEDY)
        assert default.text == re.split("[a-z]", whole.text)[0].rstrip()
        assert len(whole.token_ids) <= 7
        [[longer]] = one.generate("q", max_length=12, min_length=12, **GREEDY)
        assert len(longer.token_ids) == 12  # a call's options are for that call
        assert one.generate("q", **GREEDY) == [[whole]]


def test_min_length_holds_off_the_end(generator: CodeGenerator):
    prompts = [chr(n) for n in range(65, 90)]
    free = generator.generate(prompts, max_length=20, **GREEDY)
    held = generator.generate(prompts, max_length=20, min_length=15, **GREEDY)
    assert any(len(completion.token_ids) < 15 for [completion] in free)
    assert all(len(completion.token_ids) >= 15 for [completion] in held)


def test_prompt_overflow(generator: CodeGenerator):
    context = CONFIG.n_positions
    text = "".join(chr(32 + n * 37 % 90) for n in range(context))
    room = context - 40
    options = {**GREEDY, "max_length": 40, "min_length": 40}
    fits = generator.generate(text[-room:], **options)
    assert len(fits[0][0].token_ids) == 40  # the context to its last token
    with pytest.raises(ValueError, match=rf"^prompt 1 has {room + 1} tokens.* only {room} fit"):
        generator.generate(["a", text[-room - 1 :]], **options)
    assert generator.generate(text, prompt_overflow="truncate_left", **options) == fits
    short = generator.generate("abc", **options)
    assert generator.generate("abc", prompt_overflow="truncate_left", **options) == short


@pytest.mark.parametrize("max_length", [CONFIG.n_positions, 10**9])
def test_max_length_leaves_no_room(generator: CodeGenerator, max_length: int):
    with pytest.raises(ValueError, match=r"^max_length must be below .* context of 160 tokens"):
        generator.generate("a", max_length=max_length)
    [[longest]] = generator.generate("a", max_length=159, min_length=159, **GREEDY)
    assert len(longest.token_ids) == 159


NAN, INFINITY = float("nan"), float("inf")
WRONG_OPTIONS: list[tuple[str, Any, type[Exception]]] = [
    ("max_length", 0, ValueError),
    ("max_length", -1, ValueError),
    ("max_length", 1.5, TypeError),
    ("max_length", "8", TypeError),
    ("max_length", True, TypeError),
    ("max_length", None, TypeError),
    ("min_length", -1, ValueError),
    ("min_length", 129, ValueError),  # above max_length
    ("min_length", 2.0, TypeError),
    ("decode_strategy", "greedy", ValueError),
    ("decode_strategy", None, ValueError),
    ("temperature", 0, ValueError),
    ("temperature", -0.5, ValueError),
    ("temperature", NAN, ValueError),
    ("temperature", INFINITY, ValueError),
    ("temperature", "1", TypeError),
    ("temperature", 10**400, ValueError),
    ("top_k", -1, ValueError),
    ("top_k", 2.5, TypeError),
    ("top_k", False, TypeError),
    ("top_p", 0, ValueError),
    ("top_p", 1.01, ValueError),
    ("top_p", NAN, ValueError),
    ("top_p", None, TypeError),
    ("repetition_penalty", 0, ValueError),
    ("repetition_penalty", -1, ValueError),
    ("repetition_penalty", INFINITY, ValueError),
    ("repetition_penalty", "1.1", TypeError),
    ("presence_penalty", 2.1, ValueError),
    ("presence_penalty", -2.1, ValueError),
    ("presence_penalty", NAN, ValueError),
    ("presence_penalty", "1", TypeError),
    ("frequency_penalty", 3, ValueError),
    ("frequency_penalty", None, TypeError),
    ("logit_bias", [(1, 2.0)], TypeError),
    ("logit_bias", {"a": 1.0}, TypeError),
    ("logit_bias", {1.5: 1.0}, TypeError),
    ("logit_bias", {-1: 1.0}, ValueError),
    ("logit_bias", {1: "2"}, TypeError),
    ("logit_bias", {1: INFINITY}, ValueError),
    ("logit_bias", {1: NAN}, ValueError),
    ("suppress_tokens", 3, TypeError),
    ("suppress_tokens", "ab", TypeError),
    ("suppress_tokens", [1.0], TypeError),
    ("suppress_tokens", [True], TypeError),
    ("suppress_tokens", [-1], ValueError),
    ("num_return_sequences", 0, ValueError),
    ("num_return_sequences", 1.0, TypeError),
    ("seed", -1, ValueError),
    ("seed", 0.5, TypeError),
    ("seed", "now", TypeError),
    ("truncation", "(", ValueError),
    ("truncation", "", ValueError),
    ("truncation", [], ValueError),
    ("truncation", ["a", "["], ValueError),
    ("truncation", 7, TypeError),
    ("truncation", ["a", None], TypeError),
    ("prompt_overflow", "drop", ValueError),
    ("prompt_overflow", None, ValueError),
    ("batch_size", 0, ValueError),
    ("batch_size", 2.0, TypeError),
    ("batch_size", True, TypeError),
]


@pytest.mark.parametrize(("name", "value", "error"), WRONG_OPTIONS)
def test_a_wrong_value_is_one_line_that_names_the_option(
    generator: CodeGenerator, name: str, value: Any, error: type[Exception]
):
    with pytest.raises(error) as caught:
        generator.generate("a", **{name: value})
    with pytest.raises(error) as at_load:  # and before anything is loaded
        CodeGenerator.from_pretrained("/there/is/no/such/folder", **{name: value})
    assert str(caught.value) == str(at_load.value)
    assert str(caught.value).startswith(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ("", ValueError, "prompt 0 must not be empty"),
        (["a", ""], ValueError, "prompt 1 must not be empty"),
        ([], ValueError, "prompts must not be an empty list"),
        (["a", 3], TypeError, "prompt 1 must be a str, got int"),
        (["a", None], TypeError, "prompt 1 must be a str, got NoneType"),
        ([["a"]], TypeError, "prompt 0 must be a str, got list"),
        (b"a", TypeError, "prompts must be a str or a list of str, got bytes"),
        (None, TypeError, "prompts must be a str or a list of str, got NoneType"),
        ({"a": 1}, TypeError, "prompts must be a str or a list of str, got dict"),
        (
            ["a", "\ud800"],
            ValueError,
            "prompt 1: the text holds a lone surrogate, not valid Unicode",
        ),
    ],
)
def test_wrong_prompts(
    generator: CodeGenerator, prompts: Any, error: type[Exception], message: str
):
    with pytest.raises(error) as caught:
        generator.generate(prompts)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("max_lenght", "max_length"),
        ("max_new_length", "max_length"),
        ("temprature", "temperature"),
        ("topk", "top_k"),
        ("repetition_penalties", "repetition_penalty"),
        ("batchsize", "batch_size"),
        ("num_sequences", "num_return_sequences"),
    ],
)
def test_an_unknown_option_names_the_nearest(generator: CodeGenerator, name: str, nearest: str):
    message = f"^unknown option '{name}'; did you mean '{nearest}'\\?$"
    with pytest.raises(TypeError, match=message):
        generator.generate("a", **{name: 1})
    with pytest.raises(TypeError, match=message):
        CodeGenerator.from_pretrained("builtin", **{name: 1})


def test_an_option_like_no_other_lists_them(generator: CodeGenerator):
    with pytest.raises(TypeError, match=r"^unknown option 'zzz'; known: max_length, .*batch_size"):
        generator.generate("a", zzz=1)


def test_a_wrong_call_leaves_the_generator_usable(generator: CodeGenerator):
    before = generator.generate("ab", max_length=9, **GREEDY)
    with pytest.raises(TypeError):
        generator.generate(["ab", 1], max_length=9)
    assert generator.generate("ab", max_length=9, **GREEDY) == before


def test_closed(folder: Path, home_path: Path):
    one = generator_of(open_model(folder, home_path))
    one.generate("a", max_length=2)
    one.close()
    with pytest.raises(RuntimeError, match="closed"):
        one.generate("a", max_length=2)
    one.close()


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("top_k", [5, 0])
def test_the_lower_the_temperature_the_greedier(
    builtin: CodeGenerator, top_k: int, top_p: float
) -> None:
    prompt = "def add(a, b):"
    greedy = builtin.generate(prompt, decode_strategy="greedy_search", max_length=8)
    for temperature in (1e-5, 1e-30, 5e-324):
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": 1}
        assert builtin.generate(prompt, max_length=8, **options) == greedy


def test_numbers_of_any_kind_are_numbers(builtin: CodeGenerator) -> None:
    def tokens(**options: Any) -> tuple[int, ...]:
        [[completion]] = builtin.generate("x", **{"seed": 3, "max_length": 6, **options})
        return completion.token_ids

    assert tokens(max_length=np.int64(4), min_length=np.uint8(4)) == tokens(
        max_length=4, min_length=4
    )
    assert tokens(temperature=np.float32(0.5)) == tokens(temperature=0.5)
    assert tokens(temperature=Fraction(3, 2), top_k=0) == tokens(temperature=1.5, top_k=0)
    assert tokens(repetition_penalty=Fraction(3, 2)) == tokens(repetition_penalty=1.5)
    assert tokens(top_p=Fraction(9, 10)) == tokens(top_p=0.9)
    assert tokens(temperature=2**64, top_k=0) == tokens(temperature=2.0**64, top_k=0)
    assert tokens(top_k=2**63 - 1) == tokens(top_k=0)
    assert tokens(seed=np.uint64(2**64 - 1)) == tokens(seed=2**64 - 1)
    assert tokens(presence_penalty=np.float16(1.5)) == tokens(presence_penalty=1.5)
    assert tokens(logit_bias={np.int64(65): np.float32(9)}) == tokens(logit_bias={65: 9})
    forbidden = tokens()[:2]
    without = tokens(suppress_tokens=np.array(forbidden))
    assert without == tokens(suppress_tokens=list(forbidden))
    assert not set(without) & set(forbidden)


@pytest.mark.parametrize("name", ["logit_bias", "suppress_tokens"])
def test_tokens_that_the_vocabulary_does_not_have(generator: CodeGenerator, name: str):
    vocab_size = CONFIG.vocab_size

    def naming(token: int) -> dict[str, Any]:
        return {name: {token: 1.0} if name == "logit_bias" else [token]}

    assert generator.generate("a", max_length=2, **naming(vocab_size - 1))
    with pytest.raises(ValueError, match=rf"^{name}: the vocabulary has 300 tokens, .* no 300$"):
        generator.generate("a", max_length=2, **naming(vocab_size))


@pytest.mark.parametrize("options", [{"ignore_eos": True}, {"min_length": 3}, {}], ids=str)
def test_options_that_leave_no_token_to_choose(generator: CodeGenerator, options: dict[str, Any]):
    """An error of this call and of no other; if the end of text may come, it is left."""
    beside = generator.stream("b", max_length=30, **GREEDY)
    pieces = [next(beside)]
    everything_else = [n for n in range(CONFIG.vocab_size) if n != EOS]
    options = {"suppress_tokens": everything_else, "max_length": 5, **options}
    if options.keys() & {"ignore_eos", "min_length"}:
        with pytest.raises(ValueError, match=r"^suppress_tokens"):
            generator.generate("a", **options)
    else:
        assert generator.generate("a", **options)[0][0].finish_reason == "eos"
    with pytest.raises(ValueError, match=r"^suppress_tokens"):
        generator.generate("a", **{**options, "suppress_tokens": range(CONFIG.vocab_size)})
    [[expected]] = generator.generate("b", max_length=30, **GREEDY)
    assert "".join([*pieces, *beside]) == expected.text


def test_a_configuration_takes_the_place_of_the_defaults(folder: Path, home_path: Path):
    """And keywords that of its fields."""
    model = open_model(folder, home_path)
    plain = {"decode_strategy": "greedy_search", "truncation": None, "min_length": 4}
    defaults = GenerationConfig(max_length=5, **plain)
    config = GenerationConfig(max_length=7, **plain)
    with CodeGenerator(model, defaults, 2) as one:

        def lengths(*arguments: Any, **options: Any) -> set[int]:
            """The lengths that each way of asking gives."""
            [[completion]] = one.generate("q", *arguments, **options)
            [(_, [other])] = one.generate_as_completed(["q"], *arguments, **options)
            assert other == completion
            streamed = "".join(one.stream("q", *arguments, **options))
            assert streamed == completion.text
            return {len(completion.token_ids)}

        assert lengths() == {5}
        assert lengths(config) == {7}
        assert lengths(config=config) == {7}
        assert lengths(config, max_length=9, min_length=9) == {9}
        assert lengths(max_length=9, min_length=9) == {9}
        other = GenerationConfig()  # as it is, and not what it leaves of the generator's defaults
        assert one.generate("q", replace(other, seed=1)) == one.generate(
            "q", **{**vars(other), "seed": 1}
        )
        for method in (one.generate, one.generate_as_completed, one.stream):
            with pytest.raises(TypeError, match="config must be a GenerationConfig, got dict"):
                method("q" if method != one.generate_as_completed else ["q"], {"max_length": 3})
            with pytest.raises(TypeError, match="unknown option 'max_lenght'"):
                method("q" if method != one.generate_as_completed else ["q"], config, max_lenght=3)


class Source:
    """An iterable of prompts that counts how many were taken from it."""

    def __init__(self, prompts: list[Any], error: Exception | None = None) -> None:
        self.prompts, self.error, self.taken = prompts, error, 0

    def __iter__(self) -> Iterator[Any]:
        for prompt in self.prompts:
            self.taken += 1
            yield prompt
        if self.error is not None:
            raise self.error


MANY = [chr(65 + n % 26) * (1 + n % 3) + chr(65 + n // 26 % 26) for n in range(3000)]


@pytest.mark.parametrize(("count", "samples", "batch_size"), [(3000, 1, 8), (300, 3, 2)])
def test_prompts_are_taken_as_there_is_room_for_them(
    generator: CodeGenerator, count: int, samples: int, batch_size: int
):
    source, yielded = Source(MANY[:count]), list[int]()
    options: dict[str, Any] = {
        **GREEDY,
        "max_length": 2,
        "num_return_sequences": samples,
        "batch_size": batch_size,
    }
    ahead = 2 * batch_size
    expected = generator.generate(MANY[:100], **options)
    for number, completions in generator.generate_as_completed(source, **options):
        yielded.append(number)
        assert source.taken - len(yielded) <= ahead
        assert len(completions) == samples
        if number < 100:
            assert completions == expected[number]
    assert sorted(yielded) == list(range(count))
    assert at_work(generator) == 0


@pytest.mark.parametrize("how", ["close", "forget", "break"])
def test_closing_early_gives_up_the_rest(generator: CodeGenerator, how: str):
    source = Source(MANY)
    options: dict[str, Any] = {**GREEDY, "max_length": 100, "min_length": 100}
    found = generator.generate_as_completed(source, **options)
    assert source.taken == 0  # nothing runs before it is asked for
    assert at_work(generator) == 0
    if how == "break":
        for _ in found:
            break
    else:
        next(found)
    if how == "close":
        found.close()  # type: ignore[attr-defined]
    del found
    assert at_work(generator) == 0
    assert source.taken <= 2 * DEFAULT_BATCH_SIZE + 1


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (Source(["a", "b", 3, "c"]), TypeError, "^prompt 2 must be a str, got int$"),
        (Source(["a", ""]), ValueError, "^prompt 1 must not be empty$"),
        (Source(["a"] * 40 + ["x" * 999]), ValueError, "^prompt 40 has 999 tokens"),
        (Source(["a"] * 40, OSError("the source broke")), OSError, "^the source broke$"),
    ],
)
def test_a_prompt_that_is_not_possible_is_told_when_it_is_its_turn(
    generator: CodeGenerator, source: Source, error: type[Exception], message: str
):
    found = generator.generate_as_completed(source, max_length=3, **GREEDY)
    with pytest.raises(error, match=message):
        list(found)
    assert at_work(generator) == 0  # what was running is given up


def test_what_is_no_iterable_of_prompts_is_refused_when_called(generator: CodeGenerator):
    for wrong in ("abc", b"abc", 3, None):
        with pytest.raises(TypeError, match="prompts must be an iterable of str"):
            generator.generate_as_completed(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_length must be below the model's context"):
        generator.generate_as_completed(["a"], max_length=10**6)
    assert list(generator.generate_as_completed([])) == []


def together(generator: CodeGenerator, calls: list[dict[str, Any]]) -> list[Future[Any]]:
    """Make calls of `generate` that are all asked before the first step of any."""
    gather(generator, len(calls))
    with ThreadPoolExecutor(len(calls)) as pool:
        return [pool.submit(generator.generate, **call) for call in calls]


@pytest.mark.parametrize("sizes", [(1, 3), (2, 12), (12, 2, 9), (8, 8)], ids=str)
def test_calls_do_not_raise_each_other_s_limits(generator: CodeGenerator, sizes: tuple[int, ...]):
    prompts = [chr(65 + n) * (1 + n % 3) for n in range(26)]
    options: dict[str, Any] = {**GREEDY, "max_length": 24}
    expected = generator.generate(prompts, **options)
    rows_of: list[Counter[int]] = []  # of each step, how many rows of which limit

    def count(_: Forward) -> None:  # in the thread that makes the steps
        rows = generator.engine._loop.scheduler.slots.rows
        rows_of.append(Counter(id(row.request.batch) for row in rows))
        limits.update({id(row.request.batch): row.request.batch.limit for row in rows})

    limits: dict[int, int] = {}
    generator.add_step_hook(count)
    try:
        calls = [{"prompts": prompts, "batch_size": size, **options} for size in sizes]
        found = [future.result() for future in together(generator, calls)]
    finally:
        generator.remove_step_hook(count)
    assert found == [expected] * len(sizes)
    assert sorted(limits.values()) == sorted(sizes)
    for batch, limit in limits.items():
        assert max(rows[batch] for rows in rows_of) <= limit
    own = sum(max(size - DEFAULT_BATCH_SIZE, 0) for size in sizes)
    assert max(rows.total() for rows in rows_of) <= DEFAULT_BATCH_SIZE + own
    assert any(len(rows) == len(sizes) for rows in rows_of)  # they did run beside one another


class Wrapped:
    """A runtime whose logits of one row become no numbers in its second step with two rows."""

    def __init__(self, runtime: Any, row: int) -> None:
        self.runtime, self.row, self.pairs = runtime, row, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runtime, name)

    def forward(self, slot: int, token_ids: Any, *more: bool) -> StepOutput:
        output = self.runtime.forward(slot, token_ids, *more)
        self.pairs += len(token_ids) == 2 and slot == 0 and len(token_ids[0]) == 1
        if len(token_ids) != 2 or self.pairs != 2:
            return output
        candidates, total = output.candidates.copy(), output.logsumexp.copy()
        candidates[self.row] = total[self.row] = np.nan
        return replace(output, candidates=candidates, logsumexp=total)


@pytest.mark.parametrize("row", [0, 1])
def test_one_row_s_logits_that_are_not_numbers_end_its_request_alone(
    folder: Path, home_path: Path, row: int
):
    model = open_model(folder, home_path)
    wrapped = Wrapped(model.runtime, row)
    options: dict[str, Any] = {**SAMPLING, "seed": 3, "max_length": 40, "min_length": 40}
    with generator_of(replace(model, runtime=wrapped)) as one:  # type: ignore[arg-type]
        calls = [{"prompts": prompt, **options} for prompt in ("abc", "xyz")]
        alone = [one.generate(**call) for call in calls]
        assert wrapped.pairs == 0
        futures = together(one, calls)
        failed = [future for future in futures if future.exception() is not None]
        [error] = [future.exception() for future in failed]
        assert isinstance(error, FloatingPointError)
        assert "logits are not numbers" in str(error)
        for future, expected in zip(futures, alone, strict=True):
            assert future in failed or future.result() == expected
        assert at_work(one) == 0
        assert [one.generate(**call) for call in calls] == alone


BROKEN = 126  # "~", which makes the first layer overflow, so that the second one has no numbers


@pytest.fixture(scope="module", params=["paddle", "onnxruntime"])
def overflowing(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, home_path: Path
) -> Iterator[CodeGenerator]:
    """A model that knows a token after which there are no numbers, in its keys and values too."""
    tensors = spread_tensors(CONFIG, seed=4)
    tensors["transformer.wte.weight"][BROKEN] = [1000.0, *[0.0] * (CONFIG.n_embd - 1)]
    # Normed, that is 8 in its first place, where no other token comes near 6.
    layer = "transformer.h.0."
    tensors[layer + "ln_1.weight"][0], tensors[layer + "ln_1.bias"][0] = 1, 0
    tensors[layer + "mlp.fc_in.weight"][0] = [1e11, *[0.0] * (CONFIG.n_embd - 1)]
    tensors[layer + "mlp.fc_in.bias"][0] = -6e11
    tensors[layer + "mlp.fc_out.weight"][:, 0] = 1e30
    tensors["lm_head.bias"][BROKEN] = -1000
    folder = write_model(tmp_path_factory.mktemp("overflowing"), CONFIG, tensors)
    with generator_of(open_model(folder, home_path, engine=request.param)) as one:
        yield one


@pytest.mark.parametrize("strategy", ["greedy_search", "sampling", "beam_search"])
@pytest.mark.parametrize("when", ["in the prompt", "later"])
def test_logits_that_are_not_numbers(overflowing: CodeGenerator, strategy: str, when: str):
    """They end a request, and neither what runs beside it nor what comes after it in its slots."""
    options: dict[str, Any] = {**SAMPLING, "decode_strategy": strategy, "seed": 3}
    if strategy == "beam_search":
        options["num_beams"] = 3
    good = {"prompts": "def f(x):\n", "max_length": 60, "min_length": 60, **options}
    bad: dict[str, Any] = {"prompts": "x" * 30, "max_length": 60, **options}
    if when == "later":
        bad["logit_bias"] = {BROKEN: 1e6}
    else:
        bad["prompts"] += "~"
    expected = overflowing.generate(**good)
    with pytest.raises(FloatingPointError, match="logits are not numbers"):
        overflowing.generate(**bad)
    assert overflowing.generate(**good) == expected

    after = {**good, "prompts": ["if", "x = [1, 2"], "batch_size": 1}
    expected_after = overflowing.generate(**after)
    with steps_of(overflowing) as made:
        first, broken, other, last = together(overflowing, [good, bad, bad, after])
    assert first.result() == expected
    assert isinstance(broken.exception(), FloatingPointError)
    assert isinstance(other.exception(), FloatingPointError)
    assert broken.exception() is not other.exception()
    assert last.result() == expected_after
    assert any(len(step.tokens) >= 2 for step in made if step.kind == "decode")
    assert at_work(overflowing) == 0


def test_what_a_pickle_of_a_generator_loads(folder: Path, home_path: Path):
    """The same model, with the same options; in another process that needs no runtime's state."""
    where = {"home_path": home_path, "device": "cpu", "engine": "paddle", "num_threads": 1}
    options = {"max_length": 9, "truncation": None, "decode_strategy": "greedy_search"}
    with CodeGenerator.from_pretrained(folder, batch_size=3, **options, **where) as one:
        expected = one.generate("ab")
        with pickle.loads(pickle.dumps(one)) as again:
            assert again is not one
            assert again.generate("ab") == expected
            assert again.batch_size == 3
            assert again.folder == one.folder
        with copy.deepcopy(one) as again:
            assert again.generate("ab") == expected
        export, any_engine = one.folder, {k: v for k, v in where.items() if k != "engine"}
    with pickle.loads(pickle.dumps(one)) as again:  # a closed one was no less loaded from there
        assert again.generate("ab") == expected
    with (
        CodeGenerator.from_export(export, **options, **any_engine) as exported,
        pickle.loads(pickle.dumps(exported)) as again,
    ):
        assert again.generate("ab") == expected


def test_a_generator_that_was_not_loaded_by_name_or_path_has_no_pickle(generator: CodeGenerator):
    with pytest.raises(TypeError, match="not loaded by name or path has no pickle"):
        pickle.dumps(generator)


def test_keys_and_values_stay_within_their_budget(folder: Path, home_path: Path):
    """Whoever does not fit waits, and completes as if there were room for all."""
    where = {"home_path": home_path, "device": "cpu", "engine": "paddle", "num_threads": 1}
    token_bytes = (2 * CONFIG.n_layer + 1) * CONFIG.n_embd * 4
    budget = 3 * 96 * token_bytes  # three rows as long as what follows may become
    prompts = [chr(65 + n) * (1 + n) for n in range(20)]
    options: dict[str, Any] = {**GREEDY, "max_length": 70}
    with CodeGenerator.from_pretrained(folder, kv_cache_bytes=budget, **where) as one:
        taken: list[int] = []

        def measure(_: Forward) -> None:
            cache = one._model.runtime.cache
            taken.append(cache.slots * cache.capacity * token_bytes)

        one.add_step_hook(measure)
        found = one.generate(prompts, **options)
        assert 0 < max(taken) <= budget
        with pytest.raises(ValueError, match=r"^prompt 0 with max_length 140 .* kv_cache_bytes al"):
            one.generate("a" * 10, max_length=140, decode_strategy="beam_search", num_beams=6)
    with CodeGenerator.from_pretrained(folder, **where) as roomy:
        assert roomy.generate(prompts, **options) == found
    for wrong, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match=r"^kv_cache_bytes must be"):
            CodeGenerator.from_pretrained(folder, kv_cache_bytes=wrong, **where)


def test_step_hooks(generator: CodeGenerator, caplog: pytest.LogCaptureFixture):
    with steps_of(generator) as made:
        generator.generate("abc", max_length=4, min_length=4, prompt_lookup=False, **GREEDY)
    kinds = [(step.kind, step.tokens) for step in made]
    assert kinds == [("prefill", [3]), *[("decode", [1])] * 3]
    assert all(step.seconds > 0 for step in made)
    count = len(made)
    generator.generate("abc", max_length=4, **GREEDY)
    assert len(made) == count  # it is taken away

    threads = set()
    raised = 0

    def raising(_: Forward) -> None:
        nonlocal raised
        raised += 1
        threads.add(threading.get_ident())
        raise ValueError("of the hook")

    generator.add_step_hook(raising)
    generator.generate("abc", max_length=4, min_length=4, **GREEDY)
    assert raised == 1  # and it is dropped
    assert threading.get_ident() not in threads
    assert "of the hook" in caplog.text
    assert look(generator, lambda scheduler: scheduler.hooks) == []
    generator.remove_step_hook(raising)  # of one that is gone
