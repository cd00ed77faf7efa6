"""CodeGenerator: text in, text out, the same in any batch and from any thread."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import generator_of, open_model, spread_tensors, write_model

from paddlenlp_codegen_task import CodeGenerator, Completion, GenerationConfig
from paddlenlp_codegen_task.model.config import CodeGenConfig
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
        "list": [re.escape(one) for one in some],
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


def test_numpy_numbers_are_numbers(builtin: CodeGenerator) -> None:
    options = {"max_length": np.int64(4), "temperature": np.float32(0.5), "seed": 3}
    [[completion]] = builtin.generate("x", **options)
    assert len(completion.token_ids) <= 4


@pytest.mark.parametrize("engine", ["paddle", "onnxruntime"])
def test_logits_that_are_not_numbers(
    home_path: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"engine": engine, "device": "cpu", "num_threads": 1, "home_path": home_path}
    with CodeGenerator.from_pretrained("builtin", **options) as generator:
        expected = generator.generate("x", max_length=4, seed=0)
        runtime = generator._model.runtime
        forward = runtime.forward

        def broken(slot: int, token_ids: Any) -> Any:
            output = forward(slot, token_ids)
            output.candidates[:] = np.nan
            return output

        monkeypatch.setattr(runtime, "forward", broken)
        with pytest.raises(FloatingPointError, match="logits are not numbers"):
            generator.generate("x", max_length=4)
        assert not runtime._buffers  # what they hold would spread
        monkeypatch.undo()
        assert generator.generate("x", max_length=4, seed=0) == expected
