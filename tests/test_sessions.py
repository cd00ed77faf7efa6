"""Sessions of several turns, and the prefix cache through CodeGenerator."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_probe import steps_of

from paddlenlp_codegen_task import CodeGenerator

OPTIONS: dict[str, Any] = {"max_length": 20, "seed": 3}
LINES = "\n".join(f"value_{n} = read({n})" for n in range(40)) + "\n"


@pytest.fixture(params=["onnxruntime", "paddle"])
def caching(request: pytest.FixtureRequest, home_path: Path) -> Iterator[CodeGenerator]:
    with CodeGenerator.from_pretrained(
        "builtin",
        engine=request.param,
        home_path=home_path,
        device="cpu",
        num_threads=1,
        prefix_cache_bytes=50_000_000,
    ) as generator:
        yield generator


def test_an_edited_prompt_prefills_the_rest_and_completes_as_without(
    caching: CodeGenerator, builtin: CodeGenerator
):
    options = {**OPTIONS, "truncation": None}
    with steps_of(caching) as made:
        for tail in ("def f(", "def g(", "total = "):
            made.clear()
            found = caching.generate(LINES + tail, **options)
            whole = len(caching.tokenizer.encode(LINES + tail))
            prefilled = sum(sum(step.tokens) for step in made if step.kind == "prefill")
            assert prefilled == whole if tail == "def f(" else prefilled < 64 < whole
            plain = builtin.generate(LINES + tail, **options)
            assert found[0][0].token_ids == plain[0][0].token_ids


def test_a_session_runs_only_what_is_new(caching: CodeGenerator):
    session = caching.session()
    session.turn(LINES + "def total(values):", **OPTIONS)
    with steps_of(caching) as made:
        session.turn("def mean(values):", **OPTIONS)
    prefilled = sum(sum(step.tokens) for step in made if step.kind == "prefill")
    assert 0 < prefilled < 100 < len(caching.tokenizer.encode(session.text))


def test_a_session_turns_the_prefix_cache_on(home_path: Path):
    with CodeGenerator.from_pretrained(
        "builtin", home_path=home_path, device="cpu", num_threads=1
    ) as generator:
        generator.generate(LINES, **OPTIONS)
        session = generator.session()
        session.turn(LINES, **OPTIONS)
        with steps_of(generator) as made:
            session.turn("x = 1", **OPTIONS)
        assert sum(sum(step.tokens) for step in made if step.kind == "prefill") < 100


def test_turns_add_up_to_the_text(builtin: CodeGenerator):
    session = builtin.session()
    first = session.turn("def add(a, b):", **OPTIONS)
    assert first == builtin.generate("def add(a, b):", **OPTIONS)[0][0].text
    assert session.text == "def add(a, b):" + first
    prompt = session.text + "\n# sort the list"
    second = session.turn("# sort the list", **OPTIONS)
    assert second == builtin.generate(prompt, **OPTIONS)[0][0].text
    assert session.text == prompt + second
    assert [one.program for one in session.turns] == [first, second]

    session.rewind()
    assert session.text == "def add(a, b):" + first
    assert session.turn("# sort the list", **OPTIONS) == second
    session.rewind(2)
    assert session.text == ""
    with pytest.raises(ValueError, match="turns must be 1 to 0, the turns so far, got 1"):
        session.rewind()
    for wrong in (1.0, "1", True):
        with pytest.raises(TypeError, match="turns must be an integer"):
            session.rewind(wrong)  # type: ignore[arg-type]


def test_a_session_asks_for_one_completion_whatever_the_defaults_are(home_path: Path):
    with CodeGenerator.from_pretrained(
        "builtin", home_path=home_path, device="cpu", num_return_sequences=3, num_threads=1
    ) as generator:
        assert isinstance(generator.session().turn("x = 1", **OPTIONS), str)


def test_a_saved_session_goes_on(builtin: CodeGenerator, tmp_path: Path):
    file = tmp_path / "session.json"
    session = builtin.session()
    session.turn("# 你好\ndef greet(name):", **OPTIONS)
    session.save(file)
    again = builtin.session(file)
    assert again.turns == session.turns
    assert again.turn("def add(a, b):", **OPTIONS) == session.turn("def add(a, b):", **OPTIONS)
    assert [one.name for one in tmp_path.iterdir()] == ["session.json"]


def test_a_session_that_outgrows_the_context_is_still_usable(builtin: CodeGenerator):
    session = builtin.session()
    session.turn("x = 1", **OPTIONS)
    text = session.text
    with pytest.raises(
        ValueError,
        match=r"the session with this turn has \d+ tokens, .* only 1004 fit .*: rewind it",
    ):
        session.turn(LINES * 6, **OPTIONS)
    assert session.text == text
    with pytest.raises(TypeError, match="unknown option 'max_lenght'"):
        session.turn("y = 2", max_lenght=3)
    with pytest.raises(ValueError, match="specification must not be empty"):
        session.turn(" \n")
    assert session.text == text
    session.turn("y = 2", **OPTIONS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "is not a saved session"),
        ("not json", "is not a saved session"),
        (
            '{"version": 1, "model": {"name": "x"}, "turns": []}',
            "saved with another model, x; this is builtin$",
        ),
        ('{"version": 1, "model": {"name": "builtin"}, "turns": []}', "model, of other sizes$"),
        (
            '{"version": 1, "model": {}, "turns": [{"specification": "x", "program": null}]}',
            "is not a saved session",
        ),
        ('{"version": 9, "model": {}, "turns": []}', "has format 9, this package 1"),
        ('{"version": 1, "model": {}, "turns": [{"program": ""}]}', "is not a saved session"),
    ],
)
def test_files_that_are_no_session_of_this_model(
    builtin: CodeGenerator, tmp_path: Path, content: str, message: str
):
    file = tmp_path / "session.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        builtin.session(file)
    with pytest.raises(FileNotFoundError):
        builtin.session(tmp_path / "none.json")


def test_prefix_cache_bytes_is_checked(home_path: Path):
    for value, error in ((-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="prefix_cache_bytes must be"):
            CodeGenerator.from_pretrained("builtin", home_path=home_path, prefix_cache_bytes=value)
