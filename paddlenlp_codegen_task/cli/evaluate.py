"""`evaluate`: how many of a benchmark's problems a model solves."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paddlenlp_codegen_task.cli.base import (
    INTERRUPTED,
    ended_by_signals,
    flush,
    say,
    tell,
    told,
)
from paddlenlp_codegen_task.cli.generation import completing
from paddlenlp_codegen_task.cli.loading import load
from paddlenlp_codegen_task.cli.options import with_options

if TYPE_CHECKING:
    from paddlenlp_codegen_task.evaluation.benchmark import Benchmark
    from paddlenlp_codegen_task.evaluation.run import Run
    from paddlenlp_codegen_task.evaluation.sampling import Sampling

logger = logging.getLogger(__name__)

_WHAT, _HOW = "What is evaluated", "How programs are run"
HUMAN_EVAL, MTPB = "human-eval", "mtpb"
BATCH_SIZE = 64
DEFAULT_CACHE = 1 << 30  # bytes, of the prefix cache that turns go on from


@with_options(
    loading=True, shown={"prefix_cache_bytes": "1G for mtpb, else 0", "batch_size": str(BATCH_SIZE)}
)
def evaluate(
    benchmark: Annotated[
        str,
        typer.Argument(
            metavar="BENCHMARK",
            help="human-eval, mtpb, or a file of problems in HumanEval's format.",
            autocompletion=completing((HUMAN_EVAL, MTPB)),
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for samples, results and the report; the same command goes on there.",
            rich_help_panel=_WHAT,
        ),
    ],
    loading: dict[str, Any],
    problems: Annotated[
        Path | None,
        typer.Option(
            help="The benchmark's own file: needed for mtpb (mtpb.jsonl of the CodeGen paper).",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    given: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Score the completions of this file, in human-eval's format; no model runs.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="The first N problems only.", metavar="N", min=1, rich_help_panel=_WHAT),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(
            help="Completions of each problem (mtpb: of each test case), at each temperature.",
            metavar="N",
            min=1,
            rich_help_panel=_WHAT,
        ),
    ] = 1,
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            help="May be given several times; 0 is greedy, of which there is one sample.",
            metavar="NUMBER",
            show_default="0.2",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    top_p: Annotated[
        float, typer.Option(help="In (0, 1].", metavar="NUMBER", rich_help_panel=_WHAT)
    ] = 0.95,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Most new tokens of a completion or turn.",
            metavar="N",
            min=1,
            show_default="512; mtpb: as each problem says",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of all samples.", metavar="N", min=0, rich_help_panel=_WHAT)
    ] = 0,
    k: Annotated[
        list[int] | None,
        typer.Option(
            "--k",
            help="For which pass@k is estimated; may be given several times.",
            metavar="N",
            min=1,
            show_default="1, 10, 100",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    score: Annotated[
        bool,
        typer.Option(
            "--score/--no-score",
            help="Run the completions; without it they are written only.",
            rich_help_panel=_HOW,
        ),
    ] = True,
    seconds: Annotated[
        float | None,
        typer.Option(
            help="For each program.",
            metavar="SECONDS",
            min=0.1,
            max=3600,
            show_default="3; mtpb: 20",
            rich_help_panel=_HOW,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Programs that run at once.",
            metavar="N",
            min=1,
            show_default="one for each core",
            rich_help_panel=_HOW,
        ),
    ] = None,
    unsafe: Annotated[
        bool,
        typer.Option(
            "--unsafe",
            help="Run programs that a model wrote without a sandbox, with all that you may do.",
            rich_help_panel=_HOW,
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON, not as a table.")
    ] = False,
) -> None:
    """Say how many of a benchmark's problems a model solves.

    Completions are run in a sandbox. What is in --out is not done again.
    """
    with ended_by_signals(INTERRUPTED), told("evaluate"):
        tell()
        from paddlenlp_codegen_task.evaluation.report import DEFAULT_K, report, table, write
        from paddlenlp_codegen_task.evaluation.run import Run, workers_here
        from paddlenlp_codegen_task.evaluation.sampling import Sampling
        from paddlenlp_codegen_task.evaluation.sandbox import Limits, Sandbox

        chosen = _benchmark(benchmark, problems, limit)
        sampling = Sampling(samples, tuple(temperature or (0.2,)), top_p, max_length, seed)
        sandbox = None
        if score:  # told now, not after hours of generating
            sandbox = Sandbox(Limits(seconds=seconds or chosen.seconds), unsafe=unsafe)
        if given is not None:
            run = Run.of_samples(chosen, out, given)
        else:
            run = _completed(chosen, out, loading, sampling)
        if sandbox is None:
            typer.echo(f"{run.folder / 'samples.jsonl'}")
            return
        with _Bar(len(run.samples()), "program") as bar:
            results = run.score(sandbox, workers or workers_here(), bar.update)
        found = report(run, results, k or DEFAULT_K)
        write(run, found)
        if as_json:
            import json

            typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
        else:
            typer.echo(table(found), nl=False)
        flush()


def _benchmark(name: str, problems: Path | None, limit: int | None) -> Benchmark:
    from paddlenlp_codegen_task.evaluation import problems as reading
    from paddlenlp_codegen_task.evaluation.functions import Functions
    from paddlenlp_codegen_task.evaluation.turns import Turns

    if name == MTPB:
        if problems is None:
            raise ValueError(
                "--problems: give mtpb.jsonl, which is in codegen1/benchmark of "
                "https://github.com/salesforce/CodeGen"
            )
        return Turns(reading.read_turns_problems(problems)[:limit])
    if name == HUMAN_EVAL:
        found = (
            reading.human_eval_problems() if problems is None else reading.read_problems(problems)
        )
        return Functions(HUMAN_EVAL, found[:limit])
    if problems is not None:
        raise ValueError("--problems: the benchmark is a file already")
    path = Path(name)
    if not path.exists():
        raise ValueError(f"BENCHMARK must be {HUMAN_EVAL}, {MTPB} or a file, and {name} is no file")
    return Functions(path.name, reading.read_problems(path)[:limit])


def _completed(benchmark: Benchmark, out: Path, loading: dict[str, Any], sampling: Sampling) -> Run:
    """Have a model complete what is not completed yet."""
    from paddlenlp_codegen_task.evaluation.run import Run

    options = {"batch_size": BATCH_SIZE, **loading}
    if benchmark.name == MTPB:
        options.setdefault("prefix_cache_bytes", DEFAULT_CACHE)
    with load(options) as generator:
        run = Run.of_model(benchmark, out, generator, sampling)
        with _Bar(len(benchmark.keys(sampling)), "completion") as bar:
            start = time.monotonic()
            run.complete(generator, sampling, bar.update)
        seconds = time.monotonic() - start
        if bar.tokens:
            say(f"{bar.tokens:,} tokens in {seconds:.0f} s: {bar.tokens / seconds:.0f} tokens/s")
    return run


class _Bar:
    """A progress bar on a terminal's standard error."""

    def __init__(self, total: int, unit: str) -> None:
        from tqdm import tqdm

        self.tokens = 0
        self._bar = tqdm(total=total, unit=unit, disable=None, dynamic_ncols=True)
        self._start = time.monotonic()

    def update(self, count: int, tokens: int) -> None:
        """So many more are done; at first, those that were there."""
        self.tokens += tokens
        if self.tokens:
            rate = self.tokens / (time.monotonic() - self._start)
            self._bar.set_postfix_str(f"{rate:.0f} tokens/s", refresh=False)
        self._bar.update(count)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
