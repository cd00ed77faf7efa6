"""Random sets of hostile values for the options of everything but Taskflow.

Each set works, or is refused in one line that names one of its options.
"""

from __future__ import annotations

import os
import resource
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from .hostile_values import (
    ANYTHING,
    GENERATION,
    LOADING,
    draw_value,
    evaluated,
    is_plain,
    must_be_refused,
)
from .models import load, output, write_model
from .outcomes import Outcome, check, one_line

if TYPE_CHECKING:
    from paddlenlp_codegen_task import Completion

FLOOR = 100_000
LIMIT = 10.0

MOST_MEMORY = 12 << 30  # of address space: what takes more is a failure, not the machine's end
_PROMPTS = ["'def f(x):'", "['x = 1', '# y']", "['a'] * 5", "''", "[]", "['']", "'x ' * 5000"]
_UNKNOWN = ["max_lenght", "max_tokens", "stop_sequences", "n", "temp", "mode", "é", "a\nb"]
# What an error may call an option, beside its name.
CALLED = {
    "name_or_path": ("task_path", "folder", "model"),
    "task_path": ("folder", "model"),
    "prompts": ("prompt",),
}


def draw(random: Random) -> dict[str, Any]:
    """Who is asked, and the options as expressions."""
    face = random.choice(["config"] * 6 + ["generate"] * 3 + ["stream", "each"] + ["load"] * 2)
    names = GENERATION if face != "load" else [*GENERATION, *LOADING * 3]
    chosen = {random.choice(names) for _ in range(random.choice([1, 1, 2, 3, 6]))}
    options = {name: draw_value(random, name) for name in sorted(chosen)}
    if random.randrange(40) == 0:
        # GenerationConfig's own names are for Python to check, which does not mind line breaks.
        options[random.choice(_UNKNOWN if face != "config" else _UNKNOWN[:-1])] = "1"
    given: dict[str, Any] = {"face": face, "options": options}
    if face == "load" and random.randrange(8) == 0:
        given["name_or_path"] = draw_value(random, "name_or_path")
    if face in ("generate", "stream", "each"):
        odd = random.randrange(12) == 0
        given["prompts"] = random.choice(ANYTHING if odd else _PROMPTS)
    return given


class Attacker:
    """Asks with options, and sees to it that nobody else is hurt."""

    def __init__(self, folder: Path) -> None:
        """Export the model, and open the generator that is asked."""
        self._home = folder / "exports"
        self._model = write_model(folder / "model")
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, limits[1]))
        self._generator = load(self._model, self._home, "onnxruntime")
        self._expected = output(self._generator)
        self._made = 0

    def attack(self, given: dict[str, Any]) -> Outcome:
        """Ask once, with one set of options."""
        faces: dict[str, Callable[..., None]] = {
            "config": self._config,
            "generate": self._generate,
            "stream": self._stream,
            "each": self._each,
            "load": self._load,
        }
        if given["face"] == "load":
            prepare_paths()
        values = {name: evaluated(one) for name, one in given["options"].items()}
        for name in ("prompts", "name_or_path"):
            if name in given:
                values[name] = evaluated(given[name])
        outcome = judged(faces[given["face"]], values)
        self._made += 1
        if self._made % 100 == 0 or given["face"] == "load":
            check(output(self._generator) == self._expected, "another call gives other text")
        return outcome

    def _config(self, **options: Any) -> None:
        from paddlenlp_codegen_task import GenerationConfig

        config = GenerationConfig(**options)
        for name in GENERATION:
            check(is_plain(getattr(config, name)), f"{name} is kept as {given_type(config, name)}")

    def _generate(self, prompts: Any, **options: Any) -> None:
        found = self._generator.generate(prompts, **{"max_length": 4, **options})
        asked = len(prompts) if isinstance(prompts, (list, tuple)) else len(found)
        check(len(found) == asked, f"{len(found)} answers to {asked} prompts")
        for completions in found:
            _check_completions(completions, options)

    def _stream(self, prompts: Any, **options: Any) -> None:
        pieces = self._generator.stream(prompts, **{"max_length": 4, **options})
        try:
            while True:
                next(pieces)
        except StopIteration as end:
            _check_completions(end.value if isinstance(end.value, list) else [end.value], options)

    def _each(self, prompts: Any, **options: Any) -> None:
        options = {"max_length": 4, **options}
        for _, completions in self._generator.generate_as_completed(prompts, **options):
            _check_completions(completions, options)

    def _load(self, **options: Any) -> None:
        from paddlenlp_codegen_task import CodeGenerator

        where = {"device": "cpu", "engine": "onnxruntime", "home_path": self._home}
        wanted = {"name_or_path": self._model, **where, **options}
        with CodeGenerator.from_pretrained(**wanted) as generator:
            generator.generate("def f(x):", max_length=4)


def _check_completions(completions: list[Completion], options: dict[str, Any]) -> None:
    expected = int(options.get("num_return_sequences", 1))
    check(len(completions) == expected, f"{len(completions)} completions, not {expected}")
    longest = int(options.get("max_length", 4))
    check(all(len(one.token_ids) <= longest for one in completions), "longer than max_length")


def judged(call: Callable[..., None], options: dict[str, Any]) -> Outcome:
    """Call with options, and judge how that ends."""
    from paddlenlp_codegen_task.export.store import ExportError

    with _no_warnings():
        try:
            call(**options)
        except (TypeError, ValueError, OSError, ExportError) as error:
            names = [*options, *(other for name in options for other in CALLED.get(name, ()))]
            # A name that is not fit to be printed is shown as Python shows it.
            one_line(error, [*names, *map(repr, names)])
            return Outcome.REFUSED
    silent = [name for name, value in options.items() if must_be_refused(name, value)]
    check(not silent, f"silently takes {silent}")
    return Outcome.WORKED


@contextmanager
def _no_warnings() -> Iterator[None]:
    """A Failure for any warning that tells of a bad number or a bad expression."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    bad = [one for one in caught if issubclass(one.category, (RuntimeWarning, FutureWarning))]
    check(not bad, f"warns: {bad[0].message if bad else ''}")


def given_type(config: object, name: str) -> str:
    """The type of what is kept of an option, for a message."""
    return type(getattr(config, name)).__name__


def prepare_paths() -> None:
    """Have in the current folder what some of the hostile paths lead to, and nothing else."""
    kept = {"file", "loop", ".cache", "huggingface", "paddlenlp"}
    for path in [*Path().iterdir(), *Path("..").glob("home-*")]:
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    Path("file").write_text("no folder", encoding="utf-8")
    if not os.path.lexists("loop"):
        Path("loop").symlink_to("loop")
