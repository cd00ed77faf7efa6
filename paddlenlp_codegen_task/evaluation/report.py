"""What a run has come to: as JSON, as a table, and as plots, beside what was published."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from paddlenlp_codegen_task.evaluation.benchmark import Line
from paddlenlp_codegen_task.evaluation.conversations import MODES
from paddlenlp_codegen_task.evaluation.pass_at_k import mean_pass_at
from paddlenlp_codegen_task.evaluation.run import Run
from paddlenlp_codegen_task.evaluation.turns import perplexity, perplexity_by_turn

logger = logging.getLogger(__name__)

REPORT, TABLE, PLOT = "report.json", "report.md", "pass_at_k.png"
DEFAULT_K = (1, 10, 100)

# In percent: tables 1 and 4 of https://arxiv.org/abs/2203.13474. Each k is of the best temperature.
_SOURCE = "https://arxiv.org/abs/2203.13474"
_HUMAN_EVAL = {
    "Salesforce/codegen-350M-mono": {"1": 12.76, "10": 23.11, "100": 35.19},
    "Salesforce/codegen-2B-mono": {"1": 23.70, "10": 36.64, "100": 57.01},
    "Salesforce/codegen-6B-mono": {"1": 26.13, "10": 42.29, "100": 65.82},
    "Salesforce/codegen-16B-mono": {"1": 29.28, "10": 49.86, "100": 75.00},
}
_MTPB = {
    "Salesforce/codegen-350M-mono": {"multi-turn": 16.98, "single-turn": 5.75},
    "Salesforce/codegen-16B-mono": {"multi-turn": 47.34, "single-turn": 38.74},
}


def report(run: Run, results: Sequence[Line], ks: Sequence[int] = DEFAULT_K) -> dict[str, Any]:
    """Sum a run's results up.

    Args:
        run: whose they are.
        results: of all its samples.
        ks: for which pass@k is estimated, as far as there are so many samples.
    """
    found: dict[str, Any] = {"settings": run.settings, "judged_by": run.judged_by}
    turns = run.benchmark.name == "mtpb"
    if turns:
        found["results"] = [
            _of_programs(
                [one for one in results if (one["mode"], one["temperature"]) == pair], pair
            )
            for pair in _pairs(results)
        ]
    else:
        temperatures = list(dict.fromkeys(one["temperature"] for one in results))
        found["results"] = [
            _of_functions([one for one in results if one["temperature"] == temperature], ks)
            for temperature in temperatures
        ]
        found["best"] = {
            k: max(one["pass@k"][k] for one in found["results"] if k in one["pass@k"])
            for k in dict.fromkeys(k for one in found["results"] for k in one["pass@k"])
        }
    published = (_MTPB if turns else _HUMAN_EVAL).get(str(run.settings.get("model")))
    if published and run.benchmark.name in ("mtpb", "human-eval"):
        found["published"] = {"source": _SOURCE, "percent": published}
    return found


def _pairs(results: Sequence[Line]) -> list[tuple[str, float]]:
    pairs = dict.fromkeys((one["mode"], one["temperature"]) for one in results)
    return sorted(pairs, key=lambda pair: MODES.index(pair[0]))


def _of_functions(lines: Sequence[Line], ks: Sequence[int]) -> dict[str, Any]:
    samples = Counter(one["task_id"] for one in lines)
    passed = Counter(one["task_id"] for one in lines if one["passed"])
    counts = [(count, passed[task_id]) for task_id, count in samples.items()]
    return {
        "temperature": lines[0]["temperature"],
        "problems": len(samples),
        "samples": len(lines),
        "passed": sum(passed.values()),
        "solved": len(passed),
        "pass@k": {
            str(k): round(mean_pass_at(k, counts), 6) for k in ks if k <= min(samples.values())
        },
        **_of_both(lines),
    }


def _of_programs(lines: Sequence[Line], pair: tuple[str, float]) -> dict[str, Any]:
    passed = [one for one in lines if one["passed"]]
    found = {
        "mode": pair[0],
        "temperature": pair[1],
        "problems": len({one["task_id"] for one in lines}),
        "samples": len(lines),
        "passed": len(passed),
        "pass_rate": round(len(passed) / len(lines), 6),
        **_of_both(lines),
    }
    if all("prompt_tokens" in one for one in lines):
        failed = [one for one in lines if not one["passed"]]
        found["perplexity"] = _rounded(perplexity(lines))
        found["perplexity_of_passed"] = _rounded(perplexity(passed))
        found["perplexity_of_failed"] = _rounded(perplexity(failed))
        found["perplexity_by_turn"] = [_rounded(one) for one in perplexity_by_turn(lines)]
    return found


def _of_both(lines: Sequence[Line]) -> dict[str, Any]:
    """What samples came to, and what was wrong with them."""
    found: dict[str, Any] = {}
    if all("tokens" in one for one in lines):
        found["tokens"] = sum(one["tokens"] for one in lines)
    if all("finish_reason" in one for one in lines):
        found["finish_reasons"] = dict(sorted(Counter(o["finish_reason"] for o in lines).items()))
    # Without what follows a colon beyond the kind of error: that is different each time.
    kinds = Counter(_kind(one["result"]) for one in lines)
    found["verdicts"] = dict(sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0])))
    return found


def _kind(result: str) -> str:
    return ":".join(result.split(":")[:2])[:60] if result.startswith("failed") else result[:60]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def table(found: dict[str, Any]) -> str:
    """A report as Markdown."""
    settings = found["settings"]
    lines = [f"# {settings['benchmark']}", ""]
    if "model" in settings:
        sampling = settings["sampling"]
        lines += [
            f"{settings['model']}, {settings['precision']}, top-p {sampling['top_p']}, seed "
            f"{sampling['seed']}",
            "",
        ]
    results = found["results"]
    published = found.get("published", {}).get("percent", {})
    if "mode" in results[0]:
        head = ["mode", "temperature", "programs", "passed", "pass rate", "prompt perplexity"]
        rows = [
            [
                one["mode"],
                _number(one["temperature"]),
                f"{one['samples']:,}",
                f"{one['passed']:,}",
                f"{one['pass_rate']:.2%}",
                _number(one.get("perplexity")),
            ]
            for one in results
        ]
        rows += [
            [mode, "published", "", "", f"{rate:.2f}%", ""] for mode, rate in published.items()
        ]
    else:
        ks = list(dict.fromkeys(k for one in results for k in one["pass@k"]))
        head = ["temperature", "samples", "passed", "solved", *(f"pass@{k}" for k in ks)]
        rows = [
            [
                _number(one["temperature"]),
                f"{one['samples']:,}",
                f"{one['passed']:,}",
                f"{one['solved']:,} of {one['problems']:,}",
                *(f"{one['pass@k'][k]:.2%}" if k in one["pass@k"] else "" for k in ks),
            ]
            for one in results
        ]
        if len(results) > 1:
            rows.append(["best", "", "", "", *(f"{found['best'][k]:.2%}" for k in ks)])
        if published:
            given = [f"{published[k]:.2f}%" if k in published else "" for k in ks]
            rows.append(["published", "", "", "", *given])
    lines += ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    if published:
        lines += ["", f"Published: {_SOURCE}."]
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def write(run: Run, found: dict[str, Any]) -> None:
    """Write a report into its run's folder: JSON, a table, and where matplotlib is here a plot."""
    content = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    files = {REPORT: content.encode(), TABLE: table(found).encode()}
    try:
        from paddlenlp_codegen_task.evaluation import plots
    except ImportError:
        logger.warning("no plot: it needs matplotlib, which is not here")
    else:
        files[PLOT] = plots.draw(found)
    run.publish(files)
