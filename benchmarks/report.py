"""Turns the JSON of compare.py into tables for the docs, and plots.

    python benchmarks/report.py benchmarks/results/compare-*.json \\
        --pages docs/benchmarks.md docs/benchmarks_cn.md --plots docs/plots

The tables, of the latest run on each kind of CPU, replace what stands between `<!-- tables -->` and
`<!-- end of tables -->` of each page. The plots are of the latest run of all.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"
LOOKUP = "prompt lookup"  # gives several tokens a step: not to be held against those that do not
FP32_PEERS = ("PaddleNLP fp32", "transformers fp32", "CTranslate2 fp32")

# Name, where it is in the JSON, and whether more is better.
MEASURES: list[tuple[str, str, str, bool]] = [
    ("decode, batch 1 (tokens/s)", "batch_1", "tokens_per_second", True),
    ("decode, batch 8", "batch_8", "tokens_per_second", True),
    ("decode, batch 32", "batch_32", "tokens_per_second", True),
    ("prefill 128 (s)", "context_128", "prefill_seconds", False),
    ("prefill 512", "context_512", "prefill_seconds", False),
    ("prefill 1024", "context_1024", "prefill_seconds", False),
    ("1,000 tokens and 32 new (s)", "whole_1000", "total_seconds", False),
    ("decode at 1,900 (tokens/s)", "context_1884", "tokens_per_second", True),
    ("first token, cold (s)", "cold_start", "first_token_seconds", False),
    ("peak memory (MB)", "cold_start", "peak_bytes", False),
]


class Results:
    def __init__(self, values: dict[str, Any]) -> None:
        self.systems: dict[str, Any] = values["systems"]
        self.machine: dict[str, Any] = values["machine"]
        self.bandwidth = statistics.median(values["bandwidth"])
        self.ours = [label for label in self.systems if label.startswith("ours")]
        self.peers = [label for label in self.systems if not label.startswith("ours")]
        # A run may have been of some tasks only.
        self.measures = [
            (name, task, key, more)
            for name, task, key, more in MEASURES
            if all(key in tasks.get(task, [{}])[0] for tasks in self.systems.values())
        ]

    def rounds(self, label: str, task: str, key: str) -> list[float]:
        return [one[key] for one in self.systems[label][task]]

    def median(self, label: str, task: str, key: str) -> float:
        return statistics.median(self.rounds(label, task, key))

    def best_peer(self, task: str, key: str, more: bool, among: list[str]) -> str:
        choose: Callable[..., str] = max if more else min
        return choose(among, key=lambda label: self.median(label, task, key))

    def ratio(self, label: str, peer: str, task: str, key: str, more: bool) -> list[float]:
        """How many times better than the peer, round by round."""
        pairs = zip(self.rounds(label, task, key), self.rounds(peer, task, key), strict=True)
        return [ours / theirs if more else theirs / ours for ours, theirs in pairs]


def shown(value: float, key: str) -> str:
    if key == "peak_bytes":
        return f"{value / 1e6:,.0f}"
    return f"{value:.2f}" if "seconds" in key else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def system_table(results: Results) -> str:
    measures = results.measures
    heads = ["", *(name for name, *_ in measures)]
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(measures)]
    for label in (*results.ours, *results.peers):
        cells = [shown(results.median(label, task, key), key) for _, task, key, _ in measures]
        lines.append("| " + " | ".join([label, *cells]) + " |")
    return "\n".join(lines)


def ratio_table(results: Results) -> str:
    """Each of ours against the best peer; float32 against the best float32 peer."""
    columns = [label for label in results.ours if "Paddle" not in label and LOOKUP not in label]
    heads = ["times better than the best peer", *columns, "best peer", "best fp32 peer"]
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(columns) + " --- | --- |"]
    fp32_peers = [label for label in results.peers if label in FP32_PEERS]
    for name, task, key, more in results.measures:
        best = results.best_peer(task, key, more, results.peers)
        best_fp32 = results.best_peer(task, key, more, fp32_peers or results.peers)
        cells = []
        for label in columns:
            peer = best_fp32 if "fp32" in label else best
            ratios = results.ratio(label, peer, task, key, more)
            low, high = min(ratios), max(ratios)
            spread = f" ({low:.2f} to {high:.2f})" if len(ratios) > 1 else ""
            cells.append(f"**{statistics.median(ratios):.2f}**{spread}")
        lines.append("| " + " | ".join([name.split(" (")[0], *cells, best, best_fp32]) + " |")
    return "\n".join(lines)


def bandwidth_table(results: Results) -> str:
    lines = [
        "| | weights read a token (MB) | limit (tokens/s) | reached |",
        "| --- | ---: | ---: | ---: |",
    ]
    for label in results.ours:
        size = results.systems[label].get("bytes_a_token")
        if size is None or "batch_1" not in results.systems[label]:
            continue
        limit = results.bandwidth / size
        reached = results.median(label, "batch_1", "tokens_per_second") / limit
        lines.append(f"| {label} | {size / 1e6:,.0f} | {limit:.0f} | {reached:.0%} |")
    return "\n".join(lines)


def tables(results: Results) -> str:
    machine = results.machine
    count = len(results.systems[results.ours[0]][results.measures[0][1]])
    return "\n\n".join(
        [
            f"{machine['cpu']}, {machine['threads']} threads, {machine['date']}, "
            f"{f'medians of {count} rounds' if count > 1 else 'one round'}; "
            f"read bandwidth {results.bandwidth / 1e9:.0f} GB/s.",
            system_table(results),
            ratio_table(results),
            bandwidth_table(results),
        ]
    )


def latest(paths: list[Path]) -> list[Results]:
    """The latest results of each kind of CPU, the latest of all first."""
    found: dict[str, Results] = {}
    for path in paths:
        one = Results(json.loads(path.read_text(encoding="utf-8")))
        kind, date = one.machine["kind"], one.machine["date"]
        if kind not in found or date > found[kind].machine["date"]:
            found[kind] = one
    return sorted(found.values(), key=lambda one: one.machine["date"], reverse=True)


def plot_decoding(results: Results, path: Path) -> None:
    import matplotlib.pyplot as plt  # needed for plots only

    labels = [*results.ours, *results.peers]
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained", sharey=True)
    for axis, batch in zip(axes, (1, 8, 32), strict=True):
        values = [results.median(label, f"batch_{batch}", "tokens_per_second") for label in labels]
        colors = ["tab:blue" if label in results.ours else "tab:gray" for label in labels]
        bars = axis.barh(labels, values, color=colors)
        axis.bar_label(bars, fmt="%.0f", padding=2)
        axis.set_title(f"batch {batch}")
        axis.set_xlabel("tokens/s")
        axis.margins(x=0.15)
    axes[0].invert_yaxis()
    figure.suptitle(title(results))
    figure.savefig(path)


def title(results: Results) -> str:
    machine = results.machine
    return f"{machine['kind']} ({machine['cpu']}, {machine['threads']} threads), {machine['date']}"


def plot_contexts(results: Results, key: str, name: str, path: Path) -> None:
    """A line a system over the length of the prompt."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    for label in (*results.ours, *results.peers):
        tasks = [task for task in results.systems[label] if task.startswith("context_")]
        lengths = [int(task.removeprefix("context_")) for task in tasks]
        values = [results.median(label, task, key) for task in tasks]
        style = "-o" if label in results.ours else "--x"
        axis.plot(lengths, values, style, label=label)
    axis.set_xlabel("tokens in the context")
    axis.set_ylabel(name)
    axis.set_yscale("log")
    axis.set_title(title(results))
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)


def write_into(page: Path, text: str) -> None:
    content = page.read_text(encoding="utf-8")
    before, rest = content.split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--pages", type=Path, nargs="*", default=[])
    parser.add_argument("--plots", type=Path)
    options = parser.parse_args()
    found = latest(options.results)
    text = "\n\n".join(f"### {one.machine['kind']}\n\n{tables(one)}" for one in found)
    print(text)
    for page in options.pages:
        write_into(page, text)
    if options.plots is not None:
        options.plots.mkdir(parents=True, exist_ok=True)
        results = found[0]
        plot_decoding(results, options.plots / "decoding.svg")
        name = "decoding, tokens/s"
        plot_contexts(results, "tokens_per_second", name, options.plots / "contexts.svg")
        plot_contexts(results, "prefill_seconds", "prefill, s", options.plots / "prefill.svg")


if __name__ == "__main__":
    main()
