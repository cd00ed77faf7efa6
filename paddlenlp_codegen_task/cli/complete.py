"""`complete`: one prompt, or a few, here and now."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.cli.base import flush, output, say, tell, told, write
from paddlenlp_codegen_task.cli.loading import load
from paddlenlp_codegen_task.cli.options import with_options
from paddlenlp_codegen_task.generation_config import GenerationConfig

if TYPE_CHECKING:
    from paddlenlp_codegen_task.requests import Completion

MOST_BYTES = 16 << 20  # of a prompt: a hundred times what fits any model's context
STDIN = "-"
_NUMBERED = re.compile(r"^prompt (\d+)\b")


@dataclass(frozen=True)
class Prompt:
    """A prompt; `id` is a file's path, STDIN, or the prompt's number from 1 on."""

    id: str | int
    text: str

    @property
    def name(self) -> str:
        """How an error calls it."""
        if self.id == STDIN:
            return "standard input"
        return f"prompt {self.id}" if isinstance(self.id, int) else checks.line(self.id, 200)


@with_options(loading=True, generation=True)
def complete(
    prompt: Annotated[
        list[str] | None,
        typer.Argument(
            help="What to complete; - for what standard input holds, which is also what there is "
            "to complete without a prompt or a file.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        list[str] | None,
        typer.Option(
            "--file",
            "-f",
            help="A file to complete, - for standard input; may be given several times.",
            metavar="PATH",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Write a JSON object a prompt, one a line, as `batch` does."),
    ] = False,
    *,
    loading: dict[str, Any],
    generation: dict[str, Any],
) -> None:
    """Complete prompts, files, or standard input.

    A single completion is written as it comes; several have a line before each, as ==> 1 <==.
    """
    with told():
        tell()
        output()  # before anything that takes long
        config = GenerationConfig(**generation)
        one_text = config.num_return_sequences == 1 and (config.best_of or 1) == 1
        prompts = _prompts(prompt or [], file or [])
        texts = [one.text for one in prompts]
        with load(loading) as generator:
            try:
                if len(prompts) == 1 and one_text and not as_json:
                    _write_stream(generator.stream(texts[0], config))
                    return
                found = generator.generate(texts, config)
            except (TypeError, ValueError) as error:
                raise ValueError(_named(str(error), prompts)) from error
        for one, completions in zip(prompts, found, strict=True):
            write(_line(one, completions) if as_json else _listed(one, completions))


def _prompts(texts: list[str], files: list[str]) -> list[Prompt]:
    """What there is to complete.

    Raises:
        OSError: a file cannot be read.
        ValueError: it is no text, or too large; standard input is named twice.
    """
    named = [*texts, *files] or [STDIN]
    if named.count(STDIN) > 1:
        raise ValueError("standard input can be read once, and - is given several times")
    found = [Prompt(number, text) for number, text in enumerate(texts, 1) if text != STDIN]
    found += [Prompt(path, _text_of(path)) for path in files if path != STDIN]
    if STDIN in named:
        found.append(Prompt(STDIN, _text_of(STDIN)))
    for one in found:
        if not one.text:
            raise ValueError(f"{one.name} is empty: there is nothing to complete")
    return found


def _text_of(path: str) -> str:
    """The text of a file, or of standard input."""
    name = Prompt(path, "").name
    try:
        if path != STDIN:
            with open(path, "rb") as file:
                content = file.read(MOST_BYTES + 1)
        elif sys.stdin is None:
            raise OSError("it is closed")
        else:
            if sys.stdin.isatty():
                say("reading a prompt from the terminal: Ctrl+D on an empty line ends it")
            content = sys.stdin.buffer.read(MOST_BYTES + 1)
    except OSError as error:
        raise OSError(f"cannot read {name}: {error.strerror or error}") from None
    if len(content) > MOST_BYTES:
        raise ValueError(f"{name}: a prompt may have {MOST_BYTES:,} bytes, and this has more")
    try:
        return content.decode("utf-8").removeprefix("\ufeff")  # a byte order mark is no text
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not text in UTF-8: byte {error.start:,} is 0x{content[error.start]:02x}"
        ) from None


def _named(message: str, prompts: list[Prompt]) -> str:
    """An error of generating, with a prompt called by its name."""
    return _NUMBERED.sub(lambda found: prompts[int(found[1])].name, message)


def _write_stream(pieces: Iterable[str]) -> None:
    """Write a text as it comes, with an end of line."""
    last = ""
    for piece in pieces:
        write(piece)
        flush()
        last = piece
    if not last.endswith("\n"):
        write("\n")


def _listed(prompt: Prompt, completions: list[Completion]) -> str:
    """Completions, each after a line that says of what it is, as `head` and `tail` have it."""
    several = len(completions) > 1
    found = []
    for number, completion in enumerate(completions, 1):
        which = f", {number} of {len(completions)}" if several else ""
        end = "" if completion.text.endswith("\n") else "\n"
        found.append(f"==> {prompt.id}{which} <==\n{completion.text}{end}")
    return "".join(found)


def _line(prompt: Prompt, completions: list[Completion]) -> str:
    """What `batch` writes of a row: its id, and all that is known of its completions."""
    from paddlenlp_codegen_task.batch.completing import Completed
    from paddlenlp_codegen_task.batch.results import as_json
    from paddlenlp_codegen_task.batch.rows import Row

    values = as_json(Completed(Row(prompt.id, prompt.text), completions))
    return json.dumps(values, ensure_ascii=False) + "\n"
