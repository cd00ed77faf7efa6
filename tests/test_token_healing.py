"""Token healing, on the built-in model and on one with a token a byte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import random_tensors
from engine_probe import steps_of
from random_models import open_model, write_model
from transformers import AutoTokenizer, CodeGenForCausalLM

from paddlenlp_codegen_task import CodeGenerator, GenerationConfig
from paddlenlp_codegen_task.finding import BUILTIN_FOLDER
from paddlenlp_codegen_task.model.config import CodeGenConfig

ADD = "def add(a, b):\n    return "
PROMPTS = [
    ADD,
    "def add(a, b):\n    ret",
    "def add(a, b):\n    retu",
    "def f(items):\n    for item in ite",
    "import os\nimport sy",
    "class Stack:\n    def __ini",
    "def f(x):\n    ",
    "def f(x):\n\t",
    "def f(x):\n\n\n",
    "x = [1, 2, ",
    "print('naïve caf\u00e9",  # characters of two bytes, and of three and four
    "# \u6f22\u5b57",
    "s = '\U0001f600",
    "if x > 1:  \n \t \n    ",
]
GREEDY: dict[str, Any] = {
    "decode_strategy": "greedy_search",
    "repetition_penalty": 1.0,
    "max_length": 12,
    "truncation": None,
}


def test_a_blank_at_the_end_changes_nothing(builtin: CodeGenerator):
    """What CodeGen completes best is what no tokenizer leaves to be typed."""
    [[without]] = builtin.generate(ADD.rstrip(), **GREEDY)
    [[found]] = builtin.generate(ADD, token_healing=True, **GREEDY)
    assert (without.text, found.text) == (" a + b\n", "a + b\n")
    [[plain]] = builtin.generate(ADD, **GREEDY)
    assert "a + b" not in plain.text


@pytest.mark.parametrize(
    ("prompt", "begins"),
    [
        ("def add(a, b):\n    ret", "urn a + b"),
        ("def add(a, b):\n    return a + ", "b"),
        ("def add(a, b)", ":\n"),
        ("import os\nimport sy", "s"),
    ],
)
def test_prompts_that_end_within_something(builtin: CodeGenerator, prompt: str, begins: str):
    [[found]] = builtin.generate(prompt, token_healing=True, **GREEDY)
    assert found.text.startswith(begins)


STRATEGIES: list[dict[str, Any]] = [
    {"decode_strategy": "greedy_search"},
    {"decode_strategy": "beam_search", "num_beams": 3, "num_return_sequences": 2},
    {"seed": 5, "num_return_sequences": 3},
    {"seed": 5, "temperature": 1.5, "top_k": 0, "min_p": 0.02, "frequency_penalty": 0.5},
    {"seed": 5, "best_of": 4, "num_return_sequences": 2},
]


def of_end(generator: CodeGenerator, prompt: str, prompt_tokens: int) -> bytes:
    """What was taken back."""
    ids = generator.tokenizer.encode(prompt)[prompt_tokens:]
    return b"".join(map(generator.tokenizer.token_bytes, ids))


@pytest.mark.parametrize("options", STRATEGIES, ids=str)
def test_the_text_goes_on_from_the_prompt_as_it_was_given(
    builtin: CodeGenerator, options: dict[str, Any]
):
    """Together, alone, as a stream, and with the log-probabilities of all tokens."""
    options = {"max_length": 10, "truncation": None, "token_healing": True, **options}
    together = builtin.generate(PROMPTS, logprobs=1, output_scores=True, **options)
    healed = 0
    for prompt, completions in zip(PROMPTS, together, strict=True):
        [alone] = builtin.generate(prompt, batch_size=1, **options)
        assert [one.text for one in alone] == [one.text for one in completions]
        for one in completions:
            end = of_end(builtin, prompt, one.prompt_tokens)
            new = b"".join(map(builtin.tokenizer.token_bytes, one.token_ids))
            assert prompt.encode().endswith(end)
            assert new.startswith(end)
            assert one.text == new[len(end) :].decode(errors="replace")
            assert one.logprobs is not None
            assert [next(iter(of)) for of in one.logprobs] == list(one.token_ids)
            assert np.isfinite(one.score)
            ids = builtin.tokenizer.encode(prompt)
            healed += (
                list(one.token_ids[: len(ids) - one.prompt_tokens]) != ids[one.prompt_tokens :]
            )
        if "best_of" in options:
            continue
        if len(completions) == 1:
            assert "".join(builtin.stream(prompt, **options)) == completions[0].text
        else:
            told = [""] * len(completions)
            for n, piece in builtin.stream(prompt, **options):
                told[n] += piece
            assert told == [one.text for one in completions]
    assert healed > 2  # it is not that the prompts' own tokens were the best ones


def test_speculation_and_the_prefix_cache_change_nothing(home_path: Path, builtin: CodeGenerator):
    options: dict[str, Any] = {"max_length": 24, "seed": 2, "token_healing": True}
    prompts = ["a = 1\na = 1\na = 1\na = ", "def f():\n    return 1\n\ndef f():\n    ret", *PROMPTS]
    with CodeGenerator.from_pretrained(
        "builtin",
        draft_model="builtin",
        prefix_cache_bytes=1 << 26,
        home_path=home_path,
        device="cpu",
        num_threads=1,
    ) as guessing:
        for prompt in prompts:
            plain = builtin.generate(prompt, prompt_lookup=False, **options)
            assert builtin.generate(prompt, prompt_lookup=True, **options) == plain
            for _ in range(2):  # the second time from the cache
                assert guessing.generate(prompt, **options) == plain


def test_each_key_s_completion_is_as_if_it_came_first(home_path: Path, builtin: CodeGenerator):
    """What the key before has left is gone on from, within a word even without a step."""
    text = "def mean(values):\n    total = sum(values)\n    return total / len(val"
    keys = [text[:end] for end in range(20, len(text))]
    keys += [text[:-1], text[:40] + "_x", text]  # taken back, and elsewhere
    options: dict[str, Any] = {**GREEDY, "token_healing": True}
    with CodeGenerator.from_pretrained(
        "builtin", prefix_cache_bytes=1 << 26, home_path=home_path, device="cpu", num_threads=1
    ) as typing:
        steps = 0
        for number, key in enumerate(keys):
            pieces = typing.stream(key, **options)
            if number % 3:  # the next key comes before it is done
                next(pieces, "")
                pieces.close()
                continue
            with steps_of(typing) as made:
                found = "".join(pieces)
            steps += sum(one.kind == "prefill" for one in made)
            assert found == builtin.generate(key, **options)[0][0].text
        assert steps < len(keys) / 3 - 5  # of those that were waited for


def test_rules_see_the_prompt_as_it_was_given(builtin: CodeGenerator):
    """A prompt's own line end is no match's beginning, though it is spelled again."""
    prompt = "import os\n"
    options: dict[str, Any] = {**GREEDY, "token_healing": True}
    [[whole]] = builtin.generate(prompt, **options)
    assert whole.prompt_tokens < len(builtin.tokenizer.encode(prompt))
    word = whole.text[:4]
    assert word.strip()
    [[kept]] = builtin.generate(prompt, **{**options, "truncation": rf"\n{word}"})
    assert kept.text.startswith(word)
    [[stopped]] = builtin.generate(prompt, **options, stop=word)
    assert (stopped.text, stopped.finish_reason) == ("", "stop")


def test_what_is_not_taken_back(builtin: CodeGenerator):
    options: dict[str, Any] = {**GREEDY, "seed": 1}
    for prompt in ("imp", "<|endoftext|>", "x<|endoftext|>"):
        plain = builtin.generate(prompt, **options)
        assert builtin.generate(prompt, token_healing=True, **options) == plain


def test_tokens_that_spell_the_prompt_end_no_text(builtin: CodeGenerator):
    [line_end] = builtin.tokenizer.encode("\n")
    options: dict[str, Any] = {**GREEDY, "token_healing": True, "stop_token_ids": [line_end]}
    options["max_length"] = 80
    [[found]] = builtin.generate("x = 1\n", min_length=3, **options)
    assert found.token_ids[0] == line_end
    assert len(found.token_ids) >= 3
    assert line_end not in found.token_ids[1:]
    [[short]] = builtin.generate("x = 1\n", **options)
    assert short.finish_reason == "stop"
    assert short.token_ids[0] == line_end


def test_suppressed_tokens_spell_nothing(builtin: CodeGenerator):
    """Where that leaves no way, the prompt stays as it is."""
    tokenizer = builtin.tokenizer
    of_blank = tokenizer.spelling.beginning_with(b" ").tolist()
    options: dict[str, Any] = {**GREEDY, "token_healing": True}
    [one] = tokenizer.encode(" a")
    [[found]] = builtin.generate(ADD, suppress_tokens=[one], **options)
    assert one not in found.token_ids
    assert found.prompt_tokens == len(tokenizer.encode(ADD)) - 1
    plain = builtin.generate(ADD, suppress_tokens=of_blank, **GREEDY)
    assert builtin.generate(ADD, suppress_tokens=of_blank, **options) == plain


def test_max_length_counts_the_tokens_that_spell_the_prompt(builtin: CodeGenerator):
    options: dict[str, Any] = {**GREEDY, "token_healing": True}
    [[one]] = builtin.generate("def f(x):\n    ", **{**options, "max_length": 1})
    assert (one.text, one.finish_reason, len(one.token_ids)) == ("", "length", 1)
    assert list(builtin.stream("def f(x):\n    ", **{**options, "max_length": 1})) == []
    [beams] = builtin.generate(  # which no four ways spell
        "def f(x):\n    ",
        token_healing=True, decode_strategy="beam_search", max_length=1, num_return_sequences=4,
        output_scores=True,
    )  # fmt: skip
    assert len(beams) == 4
    assert {one.text for one in beams} == {""}
    assert beams[0].token_ids
    context = builtin.config.n_positions
    [[full]] = builtin.generate(
        "x = 1\n" * 2 * context, prompt_overflow="truncate_left", **{**options, "max_length": 9}
    )
    assert full.prompt_tokens < context - 9
    assert len(full.token_ids) <= 9


def test_it_does_not_go_with_prompt_logprobs(builtin: CodeGenerator):
    with pytest.raises(
        ValueError, match=r"^token_healing does not go with prompt_logprobs: [^\n]+$"
    ):
        builtin.generate(ADD, token_healing=True, prompt_logprobs=0)
    with pytest.raises(TypeError, match=r"^token_healing must be True or False, got 1$"):
        builtin.generate(ADD, token_healing=1)


def test_a_session_heals_its_turns(builtin: CodeGenerator):
    session = builtin.session()
    program = session.turn(ADD, token_healing=True, **GREEDY)
    assert session.text == ADD + program
    assert program.startswith("a + b")


# Where transformers' own healing and this one are of the same prompts: its last token is taken
# back, which has no blank, and another that begins with it is put in its place. It adds 10 to the
# logits of those, and 1 more to the prompt's own, where here no others may come.


@pytest.fixture(scope="module")
def theirs() -> tuple[CodeGenForCausalLM, Any]:
    model = CodeGenForCausalLM.from_pretrained(BUILTIN_FOLDER, torch_dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(BUILTIN_FOLDER)
    tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def test_equals_transformers_where_both_apply(
    builtin: CodeGenerator, theirs: tuple[CodeGenForCausalLM, Any]
):
    model, tokenizer = theirs
    words = ["self", "return", "print", "import", "range", "len", "None", "True", "append"]
    prompts = [f"def f(x):\n    {word[:n]}" for word in words for n in range(1, len(word))]
    prompts += [f"x = [1]\nx.{word[:n]}" for word in words for n in range(1, len(word))]
    compared, changed = 0, 0
    spelling = builtin.tokenizer.spelling
    for prompt in prompts:
        *kept, last = builtin.tokenizer.encode(prompt)
        text = builtin.tokenizer.token_bytes(last)
        longer = spelling.beginning_with(text)
        if text.startswith(b" ") or len(longer) == 1:
            continue
        with torch.no_grad():
            logits = model(torch.tensor([kept])).logits[0, -1].numpy().copy()
        ours = int(longer[logits[longer].argmax()])
        shorter = [n for end in range(1, len(text)) for n in spelling.of(text[:end])]
        if logits[shorter].max(initial=-np.inf) >= logits[ours]:
            continue  # one that it does not know of
        logits[longer] += 10
        logits[last] += 1
        if int(logits.argmax()) != ours:
            continue
        ids = torch.tensor([[*kept, last]])
        expected = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            token_healing=True,
            tokenizer=tokenizer,
            do_sample=False,
            max_new_tokens=9,
            pad_token_id=tokenizer.eos_token_id,
        )[0, len(kept) :].tolist()
        [[found]] = builtin.generate(prompt, token_healing=True, **{**GREEDY, "max_length": 10})
        end = builtin.tokenizer.eos_token_id
        assert list(found.token_ids) == [token for token in expected if token != end]
        compared += 1
        changed += expected[0] != last
    assert compared > 20
    assert changed > 8


# With a token a byte, each has one spelling: its own. Nothing is to change then.


@pytest.fixture(scope="module")
def of_bytes(home_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CodeGenerator]:
    config = CodeGenConfig(
        vocab_size=300,
        n_positions=256,
        n_embd=64,
        n_layer=1,
        n_head=4,
        rotary_dim=16,
        n_inner=256,
        eos_token_id=256,
    )
    folder = write_model(tmp_path_factory.mktemp("bytes"), config, random_tensors(config, 3))
    model = open_model(folder, home_path, engine="onnxruntime")
    with CodeGenerator(model, GenerationConfig(truncation=None)) as generator:
        yield generator


@pytest.mark.parametrize("prompt", [*PROMPTS, "\u00e9", "a" + " " * 70])
def test_bytes_spell_themselves(of_bytes: CodeGenerator, prompt: str):
    options: dict[str, Any] = {"decode_strategy": "greedy_search", "seed": None}
    for repetition_penalty in (1.0, 1.2):
        options["repetition_penalty"] = repetition_penalty
        [[plain]] = of_bytes.generate(prompt, max_length=5, **options)
        taken = len(prompt.encode()) - len(prompt.encode().rstrip())
        taken = min(max(taken, 1), 64)
        [[found]] = of_bytes.generate(prompt, max_length=5 + taken, token_healing=True, **options)
        assert found.prompt_tokens == plain.prompt_tokens - taken
        assert bytes(found.token_ids[:taken]) == prompt.encode()[-taken:]
        assert found.token_ids[taken:] == plain.token_ids
        assert found.text == plain.text
