"""Runs all kinds of attack in turn, counts, and keeps what fails."""

from __future__ import annotations

import importlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

from .outcomes import Outcome, Outcomes
from .worker import Attacked, Worker

KINDS = ("kills", "flips", "pickles", "options", "taskflow", "disks", "downloads", "texts")
FAILURES = "failures"
SLICE = 15.0  # seconds of one kind, before it is another's turn
TELL = 60.0  # seconds between two lines that say how far it is


def draw(kind: str, seed: int, number: int) -> dict[str, Any]:
    """The input of one attack: the same whenever it is drawn."""
    found: dict[str, Any] = importlib.import_module(f".{kind}", __package__).draw(
        Random(f"{seed}:{kind}:{number}")
    )
    return found


def floor_of(kind: str) -> int:
    """How many attacks of a kind a long run makes at least."""
    floor: int = importlib.import_module(f".{kind}", __package__).FLOOR
    return floor


class Tally:
    """What a run has counted; a file that is written by rename, so that any end keeps it.

    Attributes:
        seed: whose attacks these are.
        seconds: of all runs so far.
        next: number of each kind's next attack.
        spent: seconds on each kind.
        counts: how each kind's attacks have ended.
    """

    def __init__(self, seed: int) -> None:
        """Nothing counted yet."""
        self.seed, self.seconds = seed, 0.0
        self.next: Counter[str] = Counter()
        self.spent: Counter[str] = Counter()
        self.counts: dict[str, Outcomes] = {}

    @classmethod
    def read(cls, path: Path, seed: int) -> Tally:
        """What an interrupted run of the same seed has left, or nothing."""
        tally = cls(seed)
        if path.is_file():
            left = json.loads(path.read_text(encoding="utf-8"))
            if left["seed"] == seed:
                tally.seconds = left["seconds"]
                tally.next, tally.spent = Counter(left["next"]), Counter(left["spent"])
                tally.counts = {kind: Counter(one) for kind, one in left["counts"].items()}
        return tally

    def write(self, path: Path) -> None:
        """Keep it."""
        draft = path.with_name(path.name + ".draft")
        draft.write_text(json.dumps(vars(self), indent=1), encoding="utf-8")
        os.replace(draft, path)

    def of(self, kind: str) -> Outcomes:
        """How a kind's attacks have ended."""
        return self.counts.setdefault(kind, Counter())

    def attacks(self, kind: str) -> int:
        """How many of a kind were made; a race in which three processes were killed is three."""
        return self.of(kind).total()

    @property
    def failures(self) -> int:
        """Of all kinds."""
        return sum(counts[FAILURES] for counts in self.counts.values())

    def table(self, kinds: Iterable[str]) -> str:
        """The counts, a line a kind."""
        columns = [*map(str, Outcome), FAILURES]
        rows = [["kind", "attacks", "floor", *columns, "seconds"]]
        for kind in kinds:
            counts = self.of(kind)
            numbers = [self.attacks(kind), floor_of(kind), *(counts[name] for name in columns)]
            rows.append([kind, *(f"{n:,}" for n in numbers), f"{self.spent[kind]:,.0f}"])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if place == 0 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )


class Campaign:
    """A run over kinds of attack, until its time is over and all floors are met."""

    def __init__(self, folder: Path, seed: int, kinds: tuple[str, ...], floors: bool) -> None:
        """Go on with what an interrupted run of the same seed has left in `folder`."""
        self._folder, self._kinds, self._floors = folder, kinds, floors
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "tally.json"
        self.tally = Tally.read(self._path, seed)
        self._before, self._began = self.tally.seconds, time.monotonic()
        self._lock = threading.Lock()
        self._workers: dict[str, Worker] = {}
        self._taken: set[str] = set()  # kinds at which a thread is
        self._stop = threading.Event()
        self._told = time.monotonic()

    def run(self, seconds: float, jobs: int) -> None:
        """Attack for so long, earlier runs of the same seed included; longer if floors ask for it.

        Whatever ends it, all attacks that were made are counted.
        """
        self._before, self._began = self.tally.seconds, time.monotonic()
        try:
            self._run(seconds, jobs)
        finally:
            for worker in self._workers.values():
                worker.close()

    def _run(self, seconds: float, jobs: int) -> None:
        with ThreadPoolExecutor(jobs) as pool:
            try:
                running = [pool.submit(self._work, seconds) for _ in range(jobs)]
                for one in running:
                    one.result()
            finally:
                self._stop.set()

    def _work(self, seconds: float) -> None:
        """Take kinds in turn, until all is done."""
        while not self._stop.is_set():
            with self._lock:
                kind = self._next_kind(seconds)
                if kind is None:
                    return
                self._taken.add(kind)
                if kind not in self._workers:
                    self._workers[kind] = Worker(kind, self._folder / f"work-{kind}")
            try:
                self._attack(self._workers[kind], min(SLICE, seconds / len(self._kinds)))
            finally:
                with self._lock:
                    self._taken.discard(kind)

    def _next_kind(self, seconds: float) -> str | None:
        """The kind that is furthest behind; None if nothing is left to do."""
        free = [kind for kind in self._kinds if kind not in self._taken]
        if self._floors:
            behind = {kind: self.tally.attacks(kind) / floor_of(kind) for kind in free}
            kind = min(behind, key=lambda one: behind[one], default=None)
            if kind is not None and behind[kind] < 1:
                return kind
        if self._elapsed() >= seconds:
            return None
        return min(free, key=lambda one: self.tally.spent[one], default=None)

    def _elapsed(self) -> float:
        return self._before + time.monotonic() - self._began

    def _attack(self, worker: Worker, seconds: float) -> None:
        """Make attacks of one kind for a while."""
        kind, began = worker.kind, time.monotonic()
        worker.start()
        while not self._stop.is_set():
            with self._lock:
                number = self.tally.next[kind]
                self.tally.next[kind] += 1
            given = draw(kind, self.tally.seed, number)
            try:
                outcomes = worker.attack(given)
            except Attacked as failure:
                outcomes = Counter({FAILURES: 1})
                self._keep(kind, number, given, str(failure))
            with self._lock:
                self.tally.of(kind).update(outcomes)
            if time.monotonic() - began > seconds:
                break
            if self._floors and self.tally.attacks(kind) == floor_of(kind):
                break
        with self._lock:
            self.tally.spent[kind] += time.monotonic() - began
            self.tally.seconds = self._elapsed()
            self.tally.write(self._path)
            if time.monotonic() - self._told > TELL:
                self._told = time.monotonic()
                done = ", ".join(f"{one} {self.tally.attacks(one):,}" for one in self._kinds)
                print(f"{self.tally.seconds / 60:.0f} min: {done}", flush=True)

    def _keep(self, kind: str, number: int, given: dict[str, Any], failure: str) -> None:
        """Write down what failed, so that it can be tried again."""
        path = self._folder / f"{kind}-{self.tally.seed}-{number}.json"
        content = {"kind": kind, "input": given, "failure": failure}
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
        print(f"FAILED: {path}: {failure.strip().splitlines()[-1][:300]}", flush=True)


def replay(path: Path, folder: Path) -> str | None:
    """Make an attack again that `Campaign` has kept; return how it fails, or None."""
    kept = json.loads(path.read_text(encoding="utf-8"))
    with Worker(kept["kind"], folder / f"work-{kept['kind']}") as worker:
        try:
            worker.attack(kept["input"])
        except Attacked as failure:
            return str(failure)
    return None
