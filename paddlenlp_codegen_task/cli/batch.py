"""`batch`: many prompts from a file or a folder, completions into a file."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.cli import ray as on_ray
from paddlenlp_codegen_task.cli.base import FAILED, INTERRUPTED, output, say, tell, told
from paddlenlp_codegen_task.cli.loading import load
from paddlenlp_codegen_task.cli.options import with_options

if TYPE_CHECKING:
    from paddlenlp_codegen_task.batch.run import Batch, Summary
    from paddlenlp_codegen_task.batch.source import Source
    from paddlenlp_codegen_task.distributed.batch import RayBatch

STANDARD = "-"
BATCH_SIZE = 32  # what serving has, too: beyond it, two cores have nothing more to give


@with_options(
    loading=True,
    generation=True,
    shown={"batch_size": str(BATCH_SIZE), "allow_special_tokens": "no"},
)
def batch(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help='File with a JSON object a line: {"prompt": ...}, if wanted with "id" and '
            '"options", or with such columns in Parquet\'s format; its path, or a URI such as '
            "s3://...; or a folder, of which each file's text is a prompt; or - for such lines on "
            "standard input.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT.jsonl",
            help='File for completions, a line a prompt: {"id": ..., "completions": [...]}, in '
            "the order in which they finish; or - for standard output. Bad rows go to "
            "OUT.errors.jsonl.",
            show_default=False,
        ),
    ],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew, whatever there is.")
    ] = False,
    progress: Annotated[
        bool | None,
        typer.Option(
            "--progress/--no-progress",
            help="Show a bar with tokens a second and the time that is left.",
            show_default="where standard error is a terminal",
        ),
    ] = None,
    ray: on_ray.Address = None,
    ray_workers: on_ray.Workers = None,
    *,
    loading: dict[str, Any],
    generation: dict[str, Any],
) -> None:
    """Complete the prompts of a file or a folder.

    What is completed is written at once. However it ends, the same command goes on from there.
    With --seed, each row has a seed of its own, made from it and the row's id.

    Exit code 1 tells that there are rows in OUT.errors.jsonl.
    """
    with told("serve" if ray is None else "ray"):
        tell()
        on_ray.check(ray, ray_workers)
        from paddlenlp_codegen_task.batch.run import Batch, check_apart

        target = None if out == STANDARD else checks.path("OUT", out, "a file's path")
        rows = _source(source, target, check_apart)
        if target is None:
            output()
            progress = bool(progress)  # a terminal's lines are the results'
        generation.setdefault(
            "allow_special_tokens", False
        )  # a file may hold the name of any token
        options = {"batch_size": BATCH_SIZE, **loading, **generation}
        with ExitStack() as stack:
            work: Batch | RayBatch
            if ray is None:
                generator = stack.enter_context(load(options))
                work = Batch(generator, rows, target, overwrite)
            else:
                work = _on_ray(
                    stack, ray, ray_workers, rows, target, overwrite, loading | generation
                )
            with _stopped_by_signals(work.stop) as signals:
                summary = work.run(progress)
    _end(summary, signals, rows.identity is not None and target is not None)


def _on_ray(
    stack: ExitStack,
    address: str,
    workers: str | None,
    rows: Source,
    target: Path | None,
    overwrite: bool,
    options: dict[str, Any],
) -> RayBatch:
    """The same work on a cluster, to which this process is connected as long as `stack` is."""
    from paddlenlp_codegen_task.distributed.batch import RayBatch
    from paddlenlp_codegen_task.distributed.cluster import connected

    if target is None:
        raise ValueError("OUT: standard output does not go with --ray, give a file")
    stack.enter_context(connected(address))
    model = options.pop("model", None)
    return RayBatch.of(model, rows, target, overwrite, workers, **options)


def _source(given: str, target: Path | None, check_apart: Callable[[Path, Path], None]) -> Source:
    """Where rows come from, known to be no place where results go."""
    from paddlenlp_codegen_task.batch.source import Source

    if given == STANDARD:
        if sys.stdin is None:
            raise OSError("standard input is closed")
        # Not Python's own object for it, which must not be in use by a thread at the end.
        return Source.of_stream(open(0, "rb", closefd=False))
    if "://" in given:
        return Source.of_uri(given)
    path = checks.path("IN", given, "a file's or a folder's path")
    if target is not None:
        check_apart(path, target)
    return Source.of_path(path)


@contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Have the first signal stop a batch in order, and a second one at once.

    Yields:
        The signals that have come.
    """
    signals: list[int] = []

    def handle(number: int, _: object) -> None:
        signals.append(number)
        if len(signals) > 1:
            raise KeyboardInterrupt
        stop()

    before = {one: signal.signal(one, handle) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _end(summary: Summary, signals: list[int], resumable: bool) -> None:
    """Say what there is, and end with the code that goes with it."""
    if summary.stopped:
        say(f"interrupted: {summary}" + ("; the same command goes on" if resumable else ""))
        raise SystemExit(INTERRUPTED if signals[0] == signal.SIGINT else 128 + signals[0])
    say(str(summary))
    if summary.refused:
        raise SystemExit(FAILED)
