"""Infilling: CodeGen2's prompt, its ends, and texts that hold the names of its tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import regrouped, write_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from infilling_model import CONFIG, tensors, write_infilling_model, write_plain_model
from transformers import AutoTokenizer, CodeGenForCausalLM

from paddlenlp_codegen_task import CodeGenerator, Infill
from paddlenlp_codegen_task.model.infilling import Infilling
from paddlenlp_codegen_task.model.tokenizer import Tokenizer

PREFIX, SUFFIX = "def add(a, b):\n    ", "\n\nprint(add(1, 2))\n"
GREEDY: dict[str, Any] = {
    "decode_strategy": "greedy_search",
    "repetition_penalty": 1.0,
    "max_length": 12,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_infilling_model(tmp_path_factory.mktemp("codegen2"))


@pytest.fixture(scope="module")
def generator(folder: Path, home_path: Path) -> Iterator[CodeGenerator]:
    options: dict[str, Any] = {"engine": "onnxruntime", "precision": "fp32", "device": "cpu"}
    with CodeGenerator.from_pretrained(folder, home_path=home_path, **options) as found:
        yield found


@pytest.fixture(scope="module")
def suffix_first(
    tmp_path_factory: pytest.TempPathFactory, home_path: Path
) -> Iterator[CodeGenerator]:
    folder = write_infilling_model(tmp_path_factory.mktemp("suffix_first"), suffix_first=True)
    options: dict[str, Any] = {"engine": "onnxruntime", "precision": "fp32", "device": "cpu"}
    with CodeGenerator.from_pretrained(folder, home_path=home_path, **options) as found:
        yield found


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = tensors()
    for name in found:
        if name.endswith("qkv_proj.weight"):
            found[name] = regrouped(found[name], 8, 4)
    other = write_safetensors(tmp_path_factory.mktemp("theirs"), found, CONFIG)
    return CodeGenForCausalLM.from_pretrained(other).eval()


def test_the_prompt_is_the_model_cards(folder: Path, tokenizer: Tokenizer):
    card = f"{PREFIX}<mask_1>{SUFFIX}<|endoftext|><sep><mask_1>"
    infilling = Infilling.of(tokenizer)
    assert infilling is not None
    found = infilling.prompt(tokenizer.encode(PREFIX), tokenizer.encode(SUFFIX), 100)
    assert found == AutoTokenizer.from_pretrained(folder)(card).input_ids
    assert infilling.prompt(tokenizer.encode(PREFIX), tokenizer.encode(SUFFIX), 10) is None
    assert tokenizer.token_id("<eom>") == infilling.end
    assert tokenizer.token_id("<mask_9999>") is None


def test_the_suffix_comes_first_where_a_token_says_so(suffix_first: CodeGenerator):
    tokenizer = suffix_first.tokenizer
    prompt = f"<suffix_first>{SUFFIX}<sep>{PREFIX}"
    infilling = Infilling.of(tokenizer)
    assert infilling is not None
    found = infilling.prompt(tokenizer.encode(PREFIX), tokenizer.encode(SUFFIX), 100)
    assert found == tokenizer.encode(prompt)
    many, few = list(range(100, 200)), list(range(300, 310))
    assert infilling.cut(many, many, 64) == (many[-31:], many[:31])
    assert infilling.cut(many, few, 64) == (many[-52:], few)
    long = "x = 1\n" * 100
    with pytest.raises(ValueError, match=r"prompt 0 has .* only 116 fit the context of 128"):
        suffix_first.infill(long, SUFFIX, **GREEDY)
    [cut] = suffix_first.infill(long, long, prompt_overflow="truncate_left", **GREEDY)
    assert cut.prompt_tokens == 128 - 12


def test_what_was_typed_before_a_middle_is_healed(suffix_first: CodeGenerator):
    options: dict[str, Any] = {**GREEDY, "token_healing": True}
    tokenizer = suffix_first.tokenizer
    for prefix in ("def add(a, b):\n    ret", "import nump", "x = 1\n    "):
        [healed] = suffix_first.infill(prefix, SUFFIX, **options)
        prompt = f"<suffix_first>{SUFFIX}<sep>{prefix}"
        [[same]] = suffix_first.generate(prompt, truncation=None, **options)
        assert healed.text == same.text
        assert healed.prompt_tokens == same.prompt_tokens < len(tokenizer.encode(prompt))
    [nothing] = suffix_first.infill("", SUFFIX, **options)  # the frame is not text
    assert nothing == suffix_first.infill("", SUFFIX, **GREEDY)[0]


@pytest.mark.parametrize("name", ["generator", "suffix_first"])
def test_middles_are_transformers(request: pytest.FixtureRequest, theirs: Any, name: str):
    generator: CodeGenerator = request.getfixturevalue(name)
    tokenizer = generator.tokenizer
    infilling = Infilling.of(tokenizer)
    assert infilling is not None
    for prefix, suffix in ((PREFIX, SUFFIX), ("", SUFFIX), (PREFIX, ""), ("x = ", "  # é汉\n")):
        ids = infilling.prompt(tokenizer.encode(prefix), tokenizer.encode(suffix), 100)
        assert ids is not None
        expected = theirs.generate(
            torch.tensor([ids]),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=[50256, infilling.end],
            pad_token_id=50256,
        )[0, len(ids) :].tolist()
        [found] = generator.infill(prefix, suffix, **GREEDY)
        assert list(found.token_ids) == [one for one in expected if one != infilling.end]
        assert found.prompt_tokens == len(ids)
        assert found.text == tokenizer.decode(found.token_ids)


def test_the_middle_ends_at_its_token(generator: CodeGenerator, tokenizer: Tokenizer):
    end = tokenizer.token_id("<eom>")
    assert end is not None
    [found] = generator.infill(PREFIX, SUFFIX, logit_bias={end: 1000}, **GREEDY)
    assert (found.text, found.token_ids, found.finish_reason) == ("", (), "eos")
    [[prompt]] = generator.generate(PREFIX, logit_bias={end: 1000}, **{**GREEDY, "max_length": 2})
    assert prompt.finish_reason == "length"  # where nothing is filled in it is no end


def test_streams_samples_and_ranks(generator: CodeGenerator):
    options: dict[str, Any] = {"max_length": 10, "seed": 3, "top_k": 0, "temperature": 1.0}
    hole = Infill(PREFIX, SUFFIX)
    many = generator.infill(PREFIX, SUFFIX, num_return_sequences=3, **options)
    assert len({one.text for one in many}) == 3
    [one] = generator.infill(PREFIX, SUFFIX, **options)
    assert one == many[0]
    assert "".join(generator.stream(hole, **options)) == one.text
    [best] = generator.infill(PREFIX, SUFFIX, best_of=3, logprobs=0, **options)
    assert best.text in {one.text for one in many}
    [[plain], [middle]] = generator.generate(["x = 1", hole], **options)
    assert middle == one
    assert [[plain]] == generator.generate("x = 1", **options)
    found = dict(generator.generate_as_completed(iter([hole, "x = 1"]), **options))
    assert found == {0: [one], 1: [plain]}


def test_the_default_truncation_does_not_cut_a_middle(
    generator: CodeGenerator, tokenizer: Tokenizer
):
    [line] = tokenizer.encode("\n")
    options: dict[str, Any] = {**GREEDY, "max_length": 4, "logit_bias": {line: 1000}}
    [found] = generator.infill(PREFIX, SUFFIX, **options)
    assert found.text == "\n\n\n\n"
    [found] = generator.infill(PREFIX, SUFFIX, truncation="\n\n", **options)
    assert (found.text, found.finish_reason) == ("", "stop")
    [found] = generator.infill(PREFIX, SUFFIX, stop="\n\n\n", **options)
    assert found.text == ""


def test_both_texts_lose_what_is_furthest(generator: CodeGenerator, tokenizer: Tokenizer):
    infilling = Infilling.of(tokenizer)
    assert infilling is not None
    many, few = list(range(100, 200)), list(range(300, 310))
    assert infilling.cut(many, many, 64) == (many[-30:], many[:30])
    assert infilling.cut(many, few, 64) == (many[-50:], few)
    assert infilling.cut(few, many, 64) == (few, many[:50])
    assert infilling.cut(few, few, 64) == (few, few)
    assert infilling.cut(few, few, 3) == ([], [])
    long = "x = 1\n" * 100
    with pytest.raises(ValueError, match=r"prompt 0 has .* only 116 fit the context of 128"):
        generator.infill(long, SUFFIX, **GREEDY)
    [cut] = generator.infill(long, SUFFIX, prompt_overflow="truncate_left", **GREEDY)
    assert cut.prompt_tokens == 128 - 12
    kept = tokenizer.encode(long)[-(128 - 12 - 4 - len(tokenizer.encode(SUFFIX))) :]
    assert cut == generator.infill(tokenizer.decode(kept), SUFFIX, **GREEDY)[0]


@pytest.mark.parametrize("name", ["<mask_1>", "<sep>", "<eom>", "<|endoftext|>"])
def test_names_of_tokens_in_a_file_are_text(
    generator: CodeGenerator, tokenizer: Tokenizer, name: str
):
    text = f"x = '{name}'  # {name}\n"
    special = tokenizer.token_id(name)
    assert tokenizer.encode(text).count(special) == 2
    plain = tokenizer.encode(text, allow_special=False)
    assert special not in plain
    assert b"".join(map(tokenizer.token_bytes, plain)).decode() == text
    options: dict[str, Any] = {"max_length": 0, "prompt_logprobs": 0}
    [[taken]] = generator.generate(text, **options)
    [[as_text]] = generator.generate(text, allow_special_tokens=False, **options)
    assert taken.prompt_tokens == len(tokenizer.encode(text)) < as_text.prompt_tokens == len(plain)
    [one] = generator.infill(text, text, token_healing=True, **GREEDY)  # which is not for these
    assert one.prompt_tokens == 2 * len(plain) + 4


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(["<mask_1>", "<sep>", "<eom>", "<|endoftext|>", "    ", "\t\t", "\n"]),
            st.text(max_size=8),
        ),
        max_size=6,
    )
)
def test_ordinary_text_is_kept(tokenizer: Tokenizer, parts: list[str]):
    text = "".join(parts)
    ids = tokenizer.encode(text, allow_special=False)
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text
    if "<" not in text:
        assert ids == tokenizer.encode(text)


def test_a_model_that_does_not_infill(tmp_path: Path):
    folder = write_plain_model(tmp_path / "plain")
    options: dict[str, Any] = {"engine": "onnxruntime", "device": "cpu", "home_path": tmp_path}
    with CodeGenerator.from_pretrained(folder, **options) as plain:
        with pytest.raises(ValueError, match=r"suffix: .*plain does not infill: its tokenizer"):
            plain.infill(PREFIX, SUFFIX)
        with pytest.raises(ValueError, match="does not infill"):
            plain.stream(Infill(PREFIX, SUFFIX))


@pytest.mark.parametrize(
    ("hole", "error", "said"),
    [
        (Infill("", ""), ValueError, "prefix and suffix must not both be empty"),
        (Infill("a", 5), TypeError, "prompt 0: suffix must be a str, got int"),  # type: ignore[arg-type]
        (Infill(None, "a"), TypeError, "prompt 0: prefix must be a str"),  # type: ignore[arg-type]
        (Infill("a\ud800", "b"), ValueError, "prompt 0: the text holds a lone surrogate"),
    ],
)
def test_what_is_no_infill(generator: CodeGenerator, hole: Infill, error: type, said: str):
    with pytest.raises(error, match=said):
        generator.generate(hole, **GREEDY)


def test_rows_of_a_batch(generator: CodeGenerator, tmp_path: Path):
    from paddlenlp_codegen_task.batch.completing import Completed, Completing
    from paddlenlp_codegen_task.batch.rows import Refused
    from paddlenlp_codegen_task.batch.source import Source

    lines = [
        {"prefix": PREFIX, "suffix": SUFFIX},
        {"prompt": "x = 1"},
        {"prefix": PREFIX},
        {"prompt": "x", "prefix": "y", "suffix": "z"},
        {"prefix": 3, "suffix": "z"},
    ]
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = list(Completing(generator, Source.of_path(path).rows(), **GREEDY))
    done = {one.row.id: one.completions for one in found if isinstance(one, Completed)}
    assert done == {
        1: generator.infill(PREFIX, SUFFIX, **GREEDY),
        2: generator.generate("x = 1", **GREEDY)[0],
    }
    reasons = {one.line: one.reason for one in found if isinstance(one, Refused)}
    assert reasons[3] == "suffix is missing"
    assert reasons[4] == "prompt does not go with prefix and suffix"
    assert reasons[5] == "prefix must be a string, got 3"


def test_from_a_shell(folder: Path, home_path: Path, generator: CodeGenerator):
    from typer.testing import CliRunner

    from paddlenlp_codegen_task.cli import app

    options = ["--home-path", str(home_path), "--device", "cpu", "--precision", "fp32"]
    options += ["--decode-strategy", "greedy_search", "--repetition-penalty", "1"]
    command = ["complete", PREFIX, "--suffix", SUFFIX, "--model", str(folder), *options]
    done = CliRunner().invoke(app, [*command, "--max-length", "12"])
    assert done.exit_code == 0, done.output
    [middle] = generator.infill(PREFIX, SUFFIX, **GREEDY)
    assert done.stdout.rstrip("\n") == middle.text.rstrip("\n")
    done = CliRunner().invoke(app, [*command, "another"])
    assert done.exit_code == 2
    assert "--suffix goes with one prompt, and there are 2" in done.output


def test_prompts_of_taskflow(folder: Path, home_path: Path, generator: CodeGenerator):
    from paddlenlp import Taskflow

    task = Taskflow(
        "code_generation", task_path=str(folder), home_path=str(home_path), precision="fp32"
    )
    [middle] = generator.infill(PREFIX, SUFFIX, **GREEDY)
    hole = {"prefix": PREFIX, "suffix": SUFFIX}
    assert task(hole, **GREEDY) == [middle.text]
    assert task([hole, "x = 1"], **GREEDY)[0] == middle.text
    with pytest.raises(TypeError, match="a dict with prefix and suffix, got a dict with 'text'"):
        task({"text": PREFIX})
    task.task_instance._generator.close()
