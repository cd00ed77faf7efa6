"""A report as a plot."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw(found: dict[str, Any]) -> bytes:
    """Draw pass@k against k, a line for each temperature, or pass rates; a PNG."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.add_subplot()
    published = found.get("published", {}).get("percent", {})
    results = found["results"]
    if "mode" in results[0]:
        names = [f"{one['mode']}\n{_name(one['temperature'])}" for one in results]
        axis.bar(names, [100 * one["pass_rate"] for one in results], color="tab:blue", label="ours")
        marks = [published.get(one["mode"]) for one in results]
        there = [(name, mark) for name, mark in zip(names, marks, strict=True) if mark is not None]
        if there:
            axis.plot(*zip(*there, strict=True), "k_", markersize=40, label="published")
            axis.legend(fontsize=8)
        axis.set_ylabel("programs that are right, %")
    else:
        for one in results:
            ks = [int(k) for k in one["pass@k"]]
            rates = [100 * one["pass@k"][str(k)] for k in ks]
            axis.plot(ks, rates, "-o", label=_name(one["temperature"]))
        if published:
            ks = [int(k) for k in published]
            axis.plot(ks, list(published.values()), "k--x", label="published")
        axis.set_xscale("log")
        axis.set_xlabel("k")
        axis.set_ylabel("pass@k, %")
        axis.legend(fontsize=8)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.set_title(found["settings"]["benchmark"])
    FigureCanvasAgg(figure)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def _name(temperature: float | None) -> str:
    return "samples" if temperature is None else f"T={temperature:g}"
