"""Processes that export into one home, or save one session, are killed at any moment."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from paddlenlp_codegen_task.session import Session, Turn, read_turns

from . import exports
from .models import Child, load, output, write_model
from .outcomes import Outcome, Outcomes, check

FLOOR = 500
LIMIT = 60.0  # several processes race, twice

MODEL = {"name": "model"}
SAVED = 400  # turns of a session, enough that writing them takes a while
SAVES = 20  # of it by each process


def draw(random: Random) -> dict[str, Any]:
    """Which engine exports, what is there before, and when each process is killed, if it is."""
    target = random.choice(["onnxruntime"] * 6 + ["paddle"] * 2 + ["session"])
    # All begin at once; 1.0 is when one alone would have ended, None is not killed.
    moments: list[float | None] = [
        round(random.uniform(0, 1.1), 3) for _ in range(random.randrange(1, 5))
    ]
    moments += [None] * random.randrange(0, 2)
    before = random.choice(["nothing"] * 5 + ["damaged"] * 3 + ["whole"])
    return {"target": target, "before": before, "moments": moments}


class Attacker:
    """Forks from a process that has imported all, so that what is killed is the work itself."""

    def __init__(self, folder: Path) -> None:
        """Write the model, and have each engine's answer computed in a home of its own."""
        from paddlenlp_codegen_task.runtime import engines

        self._folder = folder
        self._model = write_model(folder / "model")
        for engine in engines.MODULES:
            engines.load_engine(engine)
        self._expected: dict[str, list[Any]] = {}
        self._seconds: dict[str, float] = {}  # that each work takes when nothing disturbs it
        for engine in engines.MODULES:
            home = folder / "undisturbed"
            shutil.rmtree(home, ignore_errors=True)
            began = time.monotonic()
            self._expected[engine] = self._child(engine, home, 0).wait()["value"]
            self._seconds[engine] = time.monotonic() - began
        began = time.monotonic()
        Child(self._save, folder / "result-0").wait()
        self._seconds["session"] = time.monotonic() - began

    def attack(self, given: dict[str, Any]) -> Outcomes:
        """Race, kill, and see what is left; as many attacks as processes were killed."""
        killed, outcome = (
            self._saves(given) if given["target"] == "session" else self._exports(given)
        )
        return Counter({outcome: killed})

    def _child(self, engine: str, home: Path, number: int) -> Child:
        def complete() -> list[Any]:
            with load(self._model, home, engine) as generator:
                return output(generator)

        return Child(complete, self._folder / f"result-{number}")

    def _exports(self, given: dict[str, Any]) -> tuple[int, Outcome]:
        engine, home = given["target"], self._folder / f"shared-{given['target']}"
        root = exports.root(home, self._model.name)
        root.mkdir(parents=True, exist_ok=True)
        if given["before"] == "nothing":
            exports.remove_published(root)
        elif given["before"] == "damaged":
            for export in exports.published(root):
                os.truncate(export / "config.json", 7)

        def start(number: int) -> Child:
            return self._child(engine, home, number)

        killed = self._race(given, start, self._expected[engine])
        built = [export.stat().st_ino for export in self._intact(root)]
        self._complete(engine, home)
        whole = exports.published(root)
        check(len(whole) == 1, f"{len(whole)} exports of one model")
        outcome = Outcome.WORKED if built == [whole[0].stat().st_ino] else Outcome.REBUILT
        if exports.debris(root):  # swept when the next is built
            exports.remove_published(root)
            self._complete(engine, home)
            left = exports.debris(root)
            check(not left, f"{left} stay when the next export is built")
        return killed, outcome

    def _intact(self, root: Path) -> list[Path]:
        """Exports that were published; none, if the one that was damaged before is still there."""
        from paddlenlp_codegen_task.export.store import ExportError

        try:
            return exports.published(root)
        except ExportError:
            return []

    def _complete(self, engine: str, home: Path) -> None:
        began = time.monotonic()
        found = self._child(engine, home, 0).wait()
        took = time.monotonic() - began
        check(found.get("value") == self._expected[engine], f"a process after it gives {found}")
        check(took < 10, f"a process after it took {took:.1f} s")

    def _race(self, given: dict[str, Any], start: Callable[[int], Child], expected: object) -> int:
        """Start a process for each moment, and kill it then; those that end must be right."""
        began = time.monotonic()
        moments: list[float | None] = given["moments"]
        children = [start(number) for number in range(1, len(moments) + 1)]
        killed = 0
        order = sorted(zip(moments, children, strict=True), key=lambda one: one[0] or 0.0)
        for moment, child in order:
            if moment is not None:
                until = began + moment * self._seconds[given["target"]]
                time.sleep(max(0.0, until - time.monotonic()))
                killed += child.kill()
        for moment, child in order:
            if moment is None:
                found = child.wait()
                check(found.get("value") == expected, f"a process beside it gives {found}")
        return killed

    def _saves(self, given: dict[str, Any]) -> tuple[int, Outcome]:
        path = self._session_path
        for left in path.parent.iterdir():
            left.unlink()
        _session("before").save(path)

        def start(number: int) -> Child:
            return Child(self._save, self._folder / f"result-{number}")

        killed = self._race(given, start, "saved")
        versions = [_session(word).turns for word in ("before", "after")]
        check(read_turns(path, MODEL) in versions, "a saved session is neither of both")
        self._save()
        check(read_turns(path, MODEL) == versions[1], "a session is not saved")
        return killed, Outcome.WORKED

    def _save(self) -> str:
        for _ in range(SAVES):
            _session("after").save(self._session_path)
        return "saved"

    @property
    def _session_path(self) -> Path:
        folder = self._folder / "sessions"
        folder.mkdir(exist_ok=True)
        return folder / "session.json"


def _session(word: str) -> Session:
    return Session(lambda *_: "", MODEL, [Turn(f"# {word}", word * 100)] * SAVED)
