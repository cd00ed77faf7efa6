"""`complete`: what is completed, what is written, and what happens to hostile input."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import done, invoke, of_builtin, refused

from paddlenlp_codegen_task import CodeGenerator, Completion

# The package has the command itself under this name.
MODULE = importlib.import_module("paddlenlp_codegen_task.cli.complete")
GREEDY = ["--decode-strategy=greedy_search", "--max-length=12"]
PROMPT = "def add(a, b):\n    return"


@pytest.fixture
def command(home_path: Path) -> list[str]:
    return ["complete", *of_builtin(home_path), *GREEDY]


@pytest.fixture
def expected(builtin: CodeGenerator) -> Callable[[str], str]:
    def complete(prompt: str) -> str:
        options: Any = {"decode_strategy": "greedy_search", "max_length": 12}
        return builtin.generate(prompt, token_healing=True, **options)[0][0].text

    return complete


def with_end(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"


def test_a_prompt(command: list[str], expected: Callable[[str], str]):
    assert expected(PROMPT)
    assert done([*command, PROMPT]) == with_end(expected(PROMPT))


def test_a_prompt_may_end_anywhere(command: list[str], builtin: CodeGenerator):
    """By default; but whoever scores it means it as it is."""
    prompt = PROMPT + " "
    assert done([*command, prompt]).startswith("a + b")
    options: Any = {"decode_strategy": "greedy_search", "max_length": 12}
    [[plain]] = builtin.generate(prompt, **options)
    assert plain.text != "a + b"
    assert done([*command, "--no-token-healing", prompt]) == with_end(plain.text)
    scored = json.loads(done([*command, "--json", "--prompt-logprobs=0", prompt]))
    assert scored["completions"][0]["text"] == plain.text
    assert refused([*command, "--token-healing", "--prompt-logprobs=0", prompt]).startswith(
        "--token-healing does not go with --prompt-logprobs: "
    )
    shown = invoke(["complete", "--help"], COLUMNS="120", NO_COLOR="1").stdout
    assert " --token-healing " in shown
    assert " --no-token-healing " in shown


@pytest.mark.parametrize("given", [[], ["-"], ["--file", "-"]])
def test_standard_input(command: list[str], given: list[str], expected: Callable[[str], str]):
    assert done([*command, *given], PROMPT) == with_end(expected(PROMPT))


@pytest.mark.parametrize(
    ("content", "prompt"),
    [
        (PROMPT.encode(), PROMPT),
        (b"\xef\xbb\xbf" + PROMPT.encode(), PROMPT),  # a byte order mark
        (b"x = 1\r\ny =", "x = 1\r\ny ="),
        ("s = '\u00e9\u4e2d\U0001f600'\nt =".encode(), "s = '\u00e9\u4e2d\U0001f600'\nt ="),
        (b"a\x00b =", "a\x00b ="),
    ],
    ids=["plain", "mark", "crlf", "unicode", "null"],
)
def test_files(
    command: list[str],
    tmp_path: Path,
    content: bytes,
    prompt: str,
    expected: Callable[[str], str],
):
    file = tmp_path / "it is.py"
    file.write_bytes(content)
    assert done([*command, "-f", str(file)]) == with_end(expected(prompt))


def test_a_fifo_is_a_file(command: list[str], tmp_path: Path, expected: Callable[[str], str]):
    """As a shell's <(...) is."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_text, args=(PROMPT,))
    writer.start()
    assert done([*command, "--file", str(fifo)]) == with_end(expected(PROMPT))
    writer.join()


def test_several(command: list[str], tmp_path: Path, expected: Callable[[str], str]):
    file = tmp_path / "a.py"
    file.write_text("x =", encoding="utf-8")
    written = done([*command, PROMPT, "y =", "--file", str(file)])
    texts = [f"==> 1 <==\n{with_end(expected(PROMPT))}", f"==> 2 <==\n{with_end(expected('y ='))}"]
    assert written == "".join([*texts, f"==> {file} <==\n{with_end(expected('x ='))}"])


def test_several_completions(home_path: Path, builtin: CodeGenerator):
    options = ["--num-return-sequences=3", "--seed=5", "--max-length=6", "--no-truncation"]
    written = done(["complete", *of_builtin(home_path), *options, "x ="])
    [completions] = builtin.generate(
        "x =",
        num_return_sequences=3,
        seed=5,
        max_length=6,
        truncation=None,
        token_healing=True,
    )
    assert written == "".join(
        f"==> 1, {number} of 3 <==\n{with_end(one.text)}"
        for number, one in enumerate(completions, 1)
    )


def test_json(home_path: Path, builtin: CodeGenerator):
    options = ["--num-return-sequences=2", "--seed=5", "--max-length=3", "--no-truncation"]
    options += ["--logprobs=1", "--output-scores", "--json"]
    written = done(["complete", *of_builtin(home_path), *options, "x =", "-"], "y =")
    first, second = map(json.loads, written.splitlines())
    assert [first["id"], second["id"]] == [1, "-"]
    found = builtin.generate(
        ["x =", "y ="],
        num_return_sequences=2,
        seed=5,
        max_length=3,
        truncation=None,
        logprobs=1,
        output_scores=True,
        token_healing=True,
    )
    for line, completions in zip((first, second), found, strict=True):
        assert len(line["completions"]) == 2
        for written_one, one in zip(line["completions"], completions, strict=True):
            assert {*written_one} == {"text", "tokens", "finish_reason", "logprobs", "score"}
            assert written_one["text"] == one.text
            assert written_one["tokens"] == len(one.token_ids)
            assert written_one["finish_reason"] == one.finish_reason
            assert written_one["score"] == pytest.approx(one.score)
            assert one.logprobs is not None
            given = [
                {int(key): value for key, value in at.items()} for at in written_one["logprobs"]
            ]
            assert given == [pytest.approx(at) for at in one.logprobs]


def test_json_knows_no_infinity():
    """Which is the log-probability of a token that may not come."""
    one = Completion(
        text="x",
        token_ids=(1,),
        finish_reason="length",
        prompt_tokens=2,
        logprobs=({1: -math.inf, 2: -0.5},),
        prompt_logprobs=(None, {3: -1.5}),
        score=-math.inf,
    )
    line = MODULE._line(MODULE.Prompt(1, "y"), [one])
    [found] = json.loads(line, parse_constant=pytest.fail)["completions"]
    assert (found["score"], found["logprobs"]) == (-9999.0, [{"1": -9999.0, "2": -0.5}])
    assert found["prompt_logprobs"] == [None, {"3": -1.5}]


def test_a_text_is_written_as_it_comes(
    command: list[str], monkeypatch: pytest.MonkeyPatch, expected: Callable[[str], str]
):
    """Not all at its end: a piece is flushed before the next is asked for."""
    flushed: list[int] = []
    pieces = 0
    stream = CodeGenerator.stream

    def counted(self: CodeGenerator, *given: Any, **options: Any) -> Any:
        nonlocal pieces
        for piece in stream(self, *given, **options):
            pieces += 1
            yield piece

    monkeypatch.setattr(CodeGenerator, "stream", counted)
    monkeypatch.setattr(MODULE, "flush", lambda: flushed.append(pieces))
    assert done([*command, "x ="]) == with_end(expected("x ="))
    assert pieces > 1
    assert flushed == list(range(1, pieces + 1))


def test_an_empty_completion_is_an_empty_line(command: list[str]):
    assert done([*command, "--truncation=(?s).", "x ="]) == "\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "^{name} is empty: there is nothing to complete$"),
        (b"\xef\xbb\xbf", "^{name} is empty"),
        (b"x = \xff\xfe", "^{name} is not text in UTF-8: byte 4 is 0xff$"),
        (
            b"\x7fELF\x02\x01\x01" + bytes(range(256)),
            "^{name} is not text in UTF-8: byte 135 is 0x",
        ),
        ("x".encode("utf-16"), "^{name} is not text in UTF-8: byte 0 is 0xff$"),
        (b"\xed\xa0\x80", "^{name} is not text in UTF-8"),  # half a surrogate pair
        (
            b"x = 1\n" * 2000,
            "^{name} has [0-9]+ tokens, .* pass --prompt-overflow='truncate_left'$",
        ),
        (
            b"x" * ((16 << 20) + 1),
            "^{name}: a prompt may have 16,777,216 bytes, and this has more$",
        ),
    ],
    ids=["empty", "mark", "bytes", "binary", "utf-16", "surrogate", "long", "huge"],
)
@pytest.mark.parametrize("where", ["file", "standard input"])
def test_hostile_content(
    command: list[str], tmp_path: Path, content: bytes, message: str, where: str
):
    if where == "file":
        file = tmp_path / "prompt"
        file.write_bytes(content)
        line, name = refused([*command, "--file", str(file)]), re.escape(str(file))
    else:
        line, name = refused([*command], text=content), where
    assert re.search(message.replace("{name}", name), line), line


def test_a_long_file_can_be_cut(command: list[str], tmp_path: Path):
    file = tmp_path / "long.py"
    file.write_text("x = 1\n" * 2000, encoding="utf-8")
    assert done([*command, "--file", str(file), "--prompt-overflow=truncate_left"])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{folder}", "^cannot read {folder}: Is a directory$"),
        ("{folder}/none", "^cannot read {folder}/none: No such file or directory$"),
        ("{folder}/" + "x" * 300, "^cannot read .*: File name too long$"),
        ("{folder}/loop", "^cannot read {folder}/loop: Too many levels of symbolic links$"),
        ("{folder}/a\nb", "^cannot read {folder}/a b: No such file or directory$"),
    ],
    ids=["folder", "missing", "name", "loop", "line break"],
)
def test_files_that_cannot_be_read(command: list[str], tmp_path: Path, path: str, message: str):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    line = refused([*command, "--file", path.replace("{folder}", str(tmp_path))], code=1)
    assert re.search(message.replace("{folder}", re.escape(str(tmp_path))), line), line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-", "-"], "standard input can be read once, and - is given several times"),
        (["-", "--file=-"], "standard input can be read once, and - is given several times"),
        ([""], "prompt 1 is empty: there is nothing to complete"),
        (["x =", ""], "prompt 2 is empty: there is nothing to complete"),
        (["x =", "\udcff"], "^prompt 2: "),
    ],
)
def test_prompts_that_cannot_be(command: list[str], arguments: list[str], message: str):
    assert re.search(message, refused([*command, *arguments]))


def test_standard_input_is_asked_for_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, command: list[str]
):
    def loads(*_: Any, **__: Any) -> Any:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(MODULE, "load", loads)
    refused(command, text="")
