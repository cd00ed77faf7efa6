"""Turns the results of serve.py into a table and plots.

    python benchmarks/serve_report.py benchmarks/results/serve-2026-11-25.json \\
        --pages docs/server.md docs/server_cn.md --plots docs/plots
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from report import write_into

Row = tuple[str, str, str]  # in English, in Chinese, what was measured


def rows(results: dict[str, Any]) -> list[Row]:
    """What was measured, of what is there."""
    found: list[Row] = []
    if one := results.get("generate"):
        found.append(
            (
                "32 clients, tokens/s against `generate` in batches of 32",
                "32 个客户端，每秒词元数与批量为 32 的 `generate` 之比",
                ratio(one, "generate"),
            )
        )
    if one := results.get("ctranslate"):
        found.append(
            (
                "the same against CTranslate2 int8 behind a small server that batches",
                "同上，与组批小服务器后的 CTranslate2 int8 之比",
                ratio(one, "peer"),
            )
        )
    if one := results.get("paddlenlp"):
        found.append(
            (
                "the same against PaddleNLP's example server",
                "同上，与 PaddleNLP 示例服务器之比",
                ratio(one, "peer"),
            )
        )
    for part in (results.get("first_byte") or {}).values():
        if not isinstance(part, dict):
            continue
        clients, how = part["clients"], ("", "")
        if part["spread_seconds"]:
            how = (" one after another", "，先后到来")
        elif clients > 1:
            how = (" at once", "，同时到来")
        found.append(
            (
                f"request to first byte beyond the engine's own, "
                f"{clients} client{'s' if clients > 1 else ''}{how[0]} (ms)",
                f"从请求到首字节，引擎自身之外的时间，{clients} 个客户端{how[1]}（毫秒）",
                f"**{1e3 * part['beyond_engine_seconds']:.1f}**, 95 %: "
                f"{1e3 * part['beyond_engine_seconds_p95']:.1f}",
            )
        )
    if one := results.get("editor"):
        found.append(
            (
                "a keystroke in a 1,000-token file to the first byte, with the prefix cache "
                "against without",
                "在 1,000 个词元的文件中按一个键到首字节，有与没有前缀缓存",
                f"**{one['times_faster']:.1f} times**: {1e3 * one['first_byte_seconds_with']:.0f} "
                f"against {1e3 * one['first_byte_seconds_without']:.0f} ms",
            )
        )
    if one := results.get("overload"):
        found.append(
            (
                f"four times the load for {one['minutes']:g} minutes, a third hang up: accepted "
                "and lost; memory growth after the first minute; answers other than 200, 429",
                f"四倍负载持续 {one['minutes']:g} 分钟，三分之一的客户端挂断：已接受而丢失的请求；"
                "第一分钟后的内存增长；200、429 以外的应答",
                f"**{one['lost']}** of {one['accepted']:,}; **{one['memory_growth']:+.1%}**; "
                f"**{one['other_answers']}** of {one['requests']:,}",
            )
        )
    return found


def ratio(part: dict[str, Any], other: str) -> str:
    low, high = part["ratio_range"]
    return (
        f"**{part['ratio']:.2f}** ({low:.2f} to {high:.2f}): {part['ours_tokens_per_second']:.0f} "
        f"against {part[f'{other}_tokens_per_second']:.1f}"
    )


def table(results: dict[str, Any], language: int) -> str:
    """As Markdown; language 0 is English, 1 Chinese."""
    machine = results["machine"]
    heads = (("figure", "measured"), ("数据", "测得"))[language]
    about = (
        f"{machine['cpu']}, {machine['threads']} cores, {'/'.join(machine['vector_instructions'])},"
        f" {machine['date']}, {results['precision']}",
    )
    lines = [*about, "", f"| {heads[0]} | {heads[1]} |", "| --- | --- |"]
    lines += [f"| {row[language]} | {row[2]} |" for row in rows(results)]
    return "\n".join(lines)


def plot(results: dict[str, Any], folder: Path) -> None:
    """Throughput, and latency, over the number of clients."""
    import matplotlib.pyplot as plt  # needed for plots only

    systems = {name: part for name, part in results["sweep"].items() if isinstance(part, dict)}
    plots = (
        ("throughput", "tokens/s of all clients", (("tokens_per_second", "", "-o"),)),
        (
            "latency",
            "seconds from a request",
            (
                ("first_byte_seconds", "to the first byte, median", "-o"),
                ("first_byte_seconds_p95", "to the first byte, 95 %", ":o"),
                ("seconds", "to the end, median", "-s"),
            ),
        ),
    )
    for name, title, lines in plots:
        figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
        for color, (system, part) in zip(("tab:blue", "tab:gray"), systems.items(), strict=False):
            clients = [int(number) for number in part]
            for key, what, style in lines:
                values = [one[key] for one in part.values()]
                label = ", ".join(filter(None, (system, what)))
                axis.plot(clients, values, style, color=color, label=label, markersize=4)
        axis.set_xscale("log", base=2)
        axis.set_xticks(clients, [str(number) for number in clients])
        axis.set_xlabel("clients")
        axis.set_ylabel(title)
        if name == "latency":
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("{x:g}")
        else:
            axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
        figure.savefig(folder / f"serve-{name}.png", dpi=110)
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--pages", type=Path, nargs="*", default=[], help="English, Chinese")
    parser.add_argument("--plots", type=Path)
    options = parser.parse_args()
    results = json.loads(options.results.read_text(encoding="utf-8"))
    print(table(results, 0))
    for page in options.pages:
        write_into(page, table(results, int(page.stem.endswith("_cn"))))
    if options.plots is not None and "sweep" in results:
        options.plots.mkdir(parents=True, exist_ok=True)
        plot(results, options.plots)


if __name__ == "__main__":
    main()
