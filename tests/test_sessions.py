"""Sessions of several turns, and the prefix cache through CodeGenerator."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_probe import steps_of

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.session import Turn

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


DAMAGED = {
    "nothing": "",
    "an empty object": "{}",
    "no JSON": "not json",
    "a list": "[]",
    "lists": "[" * 100_000,
    "objects": '{"turns":' * 100_000,
    "deep turns": '{"version": 1, "model": {}, "turns": ' + "[" * 900 + "]" * 900 + "}",
    "a number beyond floats": '{"version": 1e999, "model": {}, "turns": []}',
    "NaN": '{"version": NaN, "model": {}, "turns": []}',
    "a long number": '{"version": %s, "model": {}, "turns": []}' % ("9" * 5000),
    "a version of another kind": '{"version": true, "model": {}, "turns": []}',
    "a version with a point": '{"version": 1.0, "model": {}, "turns": []}',
    "a line break": '{"version": 1, "model": {"name": "a\nb"}, "turns": []}',
    "NUL": '{"version": 1, "model": {}, "turns": []}\0',
    "no model": '{"version": 1, "model": [], "turns": []}',
    "turns of another kind": '{"version": 1, "model": {}, "turns": {"specification": "x"}}',
    "no program": '{"version": 1, "model": {}, "turns": [{"program": ""}]}',
    "a program of another kind": (
        '{"version": 1, "model": {}, "turns": [{"specification": "x", "program": null}]}'
    ),
    "a turn that is a text": '{"version": 1, "model": {}, "turns": ["specification"]}',
    "half a character": (
        '{"version": 1, "model": {}, "turns": [{"specification": "\\ud800", "program": ""}]}'
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_session_is_one_line(builtin: CodeGenerator, tmp_path: Path, case: str):
    file = tmp_path / "session.json"
    file.write_text(DAMAGED[case], encoding="utf-8")
    assert str(file) in one_line(lambda: builtin.session(file), "^path: not a saved session: ")


def one_line(call: Callable[[], object], match: str) -> str:
    with pytest.raises((ValueError, TypeError), match=match) as caught:
        call()
    message = str(caught.value)
    assert message.splitlines() == [message]
    assert len(message) < 800
    return message


def test_bytes_that_are_no_session(builtin: CodeGenerator, tmp_path: Path):
    file = tmp_path / "session.json"
    session = builtin.session()
    session.turn("x = 1", **OPTIONS)
    session.save(file)
    saved = file.read_bytes()
    rng = random.Random(0)
    for case in range(300):
        damaged = bytearray(saved)
        damaged[rng.randrange(len(saved))] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged[: rng.randrange(len(saved)) if case % 2 else None])
        message = "path: "
        try:
            assert len(builtin.session(file).turns) == 1  # a letter of a text has changed
        except ValueError as error:
            message = str(error)
        assert message.startswith("path: ")
        assert message.splitlines() == [message]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"version": 1, "model": {"name": "x"}, "turns": []}',
            "saved with another model, 'x'; this is 'builtin'$",
        ),
        (
            '{"version": 1, "model": {"name": "a\\nb\\u2028"}, "turns": []}',
            "another model, 'a..b..?.*'; this is",
        ),
        ('{"version": 1, "model": {"name": [[[1]]]}, "turns": []}', "another model, .*; this is"),
        ('{"version": 1, "model": {"name": "builtin"}, "turns": []}', "model, of other sizes$"),
        ('{"version": 9, "pages": []}', "has format 9, this package 1"),
        ('{"version": %s, "model": {}, "turns": []}' % ("9" * 4000), "has format an integer of"),
    ],
)
def test_files_that_are_no_session_of_this_model(
    builtin: CodeGenerator, tmp_path: Path, content: str, message: str
):
    file = tmp_path / "session.json"
    file.write_text(content, encoding="utf-8")
    one_line(lambda: builtin.session(file), message)
    with pytest.raises(FileNotFoundError):
        builtin.session(tmp_path / "none.json")


@pytest.mark.parametrize("path", [3, b"a", [], object(), "", "a\0b", "~nosuchuser/a", "a" * 300])
def test_paths_that_are_none(builtin: CodeGenerator, path: Any):
    one_line(lambda: builtin.session(path), "^path")
    one_line(lambda: builtin.session().save(path), "^path")


def test_only_regular_files_are_read_and_replaced(builtin: CodeGenerator, tmp_path: Path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)  # reading it would wait for ever
    (tmp_path / "link").symlink_to(fifo)
    for path in (fifo, tmp_path, tmp_path / "link"):
        before = path.lstat()
        one_line(lambda path=path: builtin.session(path), "^path: .* is not a regular file")
        one_line(lambda path=path: builtin.session().save(path), "^path: .* is not a regular file")
        assert path.lstat().st_ino == before.st_ino
    assert sorted(os.listdir(tmp_path)) == ["fifo", "link"]


def test_saving_follows_no_link_that_was_planted(builtin: CodeGenerator, tmp_path: Path):
    victim, file = tmp_path / "victim", tmp_path / "session.json"
    victim.write_text("mine")
    # Where sessions were written to first, before names were random.
    (tmp_path / f"session.json.{os.getpid()}.partial").symlink_to(victim)
    builtin.session().save(file)
    assert victim.read_text() == "mine"
    assert builtin.session(file).turns == []
    assert len(os.listdir(tmp_path)) == 3


def test_saving_keeps_a_files_mode_and_a_link_to_it(builtin: CodeGenerator, tmp_path: Path):
    file, link = tmp_path / "session.json", tmp_path / "link"
    builtin.session().save(file)
    link.symlink_to(file)
    for mode in (0o600, 0o640):
        file.chmod(mode)
        builtin.session().save(link)
        assert link.is_symlink()
        assert stat.S_IMODE(file.stat().st_mode) == mode
    assert sorted(os.listdir(tmp_path)) == ["link", "session.json"]


def test_a_session_that_cannot_be_saved_leaves_the_old_one(
    builtin: CodeGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "session.json"
    builtin.session().save(file)
    session = builtin.session()
    session.turn("x = 1", **OPTIONS)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            session.save(file)
    with pytest.raises(FileNotFoundError):
        session.save(tmp_path / "none" / "session.json")
    session.turns.append(Turn("x" * 2**24, ""))
    one_line(lambda: session.save(file), "the session has .* bytes, a file 16,777,216 at most")
    assert builtin.session(file).turns == []
    assert os.listdir(tmp_path) == ["session.json"]


def test_prefix_cache_bytes_is_checked(home_path: Path):
    for value, error in ((-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="prefix_cache_bytes must be"):
            CodeGenerator.from_pretrained("builtin", home_path=home_path, prefix_cache_bytes=value)
