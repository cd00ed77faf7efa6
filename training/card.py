"""Show what evaluate.py and train.py recorded in docs/builtin_model.md and its Chinese twin.

Replaces what stands between `<!-- evaluation -->` and `<!-- end of evaluation -->` of both pages,
and draws the loss curve from train.py's log.csv beside the rewards of refine.py's.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from evaluate import RECORD

DOCS = Path(__file__).resolve().parents[1] / "docs"
LOG, REFINED = RECORD.with_name("log.csv"), RECORD.with_name("refined.csv")
PAGES = {"en": "builtin_model.md", "cn": "builtin_model_cn.md"}
BEGIN, END = "<!-- evaluation -->", "<!-- end of evaluation -->"

WORDS = {
    "en": {
        "bits": "Held-out files, compressed by",
        "bits_unit": "Bits a byte",
        "model": "the model, as it ships (float16 weights)",
        "float32": "the model before rounding to float16",
        "five_gram": "a 5-gram model (Kneser-Ney, same tokens, same training text)",
        "xz": "`xz -9`, each file by itself",
        "xz_archive": "`xz -9`, all files in one stream",
        "headers": "{headers} held-out headers with docstrings",
        "count": "Completions",
        "parse": "the function parses",
        "finished": "came to an end within 128 tokens",
        "finished_and_parse": "came to an end and parse",
        "defined": "parse and use only defined names",
        "authors": "(the authors' own bodies use only defined names)",
        "holes": "{holes} held-out lines, taken out",
        "sampled": "Filled in",
        "greedy": "Filled in, greedily",
        "left_empty": "Left empty",
        "hole_parse": "the file parses",
        "hole_parse_not_blank": "the file parses and the line is not blank",
        "hole_exact": "it is the line that was there",
        "hole_one_line": "one line or none",
        "hole_finished": "came to an end within 128 tokens",
        "human_eval": "HumanEval",
        "earlier": ", by the model of step {step:,}",
        "solved": "solved at least once of {samples} samples",
        "greet": "`def hello_world():` prints or returns a greeting",
        "prompts": "### Ten prompts",
        "cut": "  # (128 tokens, cut)",
    },
    "cn": {
        "bits": "用以下方法压缩留出文件",
        "bits_unit": "每字节比特数",
        "model": "随包发布的模型（float16 权重）",
        "float32": "舍入为 float16 之前的模型",
        "five_gram": "5-gram 模型（Kneser-Ney，相同词元，相同训练文本）",
        "xz": "`xz -9`，逐个文件",
        "xz_archive": "`xz -9`，所有文件为一个流",
        "headers": "{headers} 个带文档字符串的留出函数头",
        "count": "补全数",
        "parse": "函数能通过解析",
        "finished": "在 128 个词元内结束",
        "finished_and_parse": "结束且能解析",
        "defined": "能解析且只用已定义的名字",
        "authors": "（作者自己的函数体只用已定义的名字）",
        "holes": "{holes} 个被取出的留出行",
        "sampled": "填充",
        "greedy": "贪心填充",
        "left_empty": "留空",
        "hole_parse": "文件能通过解析",
        "hole_parse_not_blank": "文件能解析且该行不为空白",
        "hole_exact": "与原有的行完全相同",
        "hole_one_line": "至多一行",
        "hole_finished": "在 128 个词元内结束",
        "human_eval": "HumanEval",
        "earlier": "（第 {step:,} 步的模型）",
        "solved": "{samples} 个样本中至少解出一次",
        "greet": "`def hello_world():` 打印或返回问候语",
        "prompts": "### 十个提示",
        "cut": "  # （128 个词元，被截断）",
    },
}


HOW = ("sampled", "greedy", "left_empty")  # holes were filled
HOLES = ("parse", "parse_not_blank", "exact", "one_line", "finished")  # what is counted of them


def table(*rows: tuple[str, ...]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([lines[0], f"| --- |{' ---: |' * (len(rows[0]) - 1)}", *lines[1:]])


def share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.0%})"


def infilling(filled: dict[str, Any], words: dict[str, str]) -> str:
    """The table of held-out lines, of a model that infills."""
    count = filled["holes"]
    return table(
        (words["holes"].format(holes=count), *(words[how] for how in HOW)),
        *(
            (words[f"hole_{name}"], *(share(filled[how][name], count) for how in HOW))
            for name in HOLES
        ),
    )


def evaluation(record: dict[str, Any], words: dict[str, str]) -> str:
    """The Markdown between the marks."""
    bits, held_out, solved = record["bits"], record["held_out"], record["human_eval"]
    count, hello = held_out["headers"], record["typed"]["hello_world"]
    is_earlier = solved["step"] != record["step"]
    of_model = words["earlier"].format(step=solved["step"]) if is_earlier else ""
    parts = [
        table(
            (words["bits"], words["bits_unit"]),
            (words["model"], f"{bits['model']:.4f}"),
            (words["float32"], f"{bits['model_float32']:.4f}"),
            (words["five_gram"], f"{bits['five_gram']:.3f}"),
            (words["xz"], f"{bits['xz']:.3f}"),
            (words["xz_archive"], f"{bits['xz_archive']:.3f}"),
        ),
        table(
            (words["headers"].format(headers=count), words["count"]),
            (words["parse"], share(held_out["parse"], count)),
            (words["finished"], share(held_out["finished"], count)),
            (words["finished_and_parse"], share(held_out["finished_and_parse"], count)),
            (words["defined"], share(held_out["parse_and_defined"], count)),
            (words["authors"], share(held_out["authors_defined"], count)),
            (words["greet"], f"{hello['greet']} / {hello['samples']}"),
        ),
        table(
            (words["human_eval"] + of_model, ""),
            ("pass@1", f"{solved['pass_at_1']:.2%}"),
            ("pass@10", f"{solved['pass_at_10']:.2%}"),
            (
                words["solved"].format(samples=solved["samples"]),
                f"{len(solved['solved'])} / {solved['problems']}",
            ),
        ),
        words["prompts"],
    ]
    if filled := record.get("infilling"):
        parts.insert(2, infilling(filled, words))
    for one in record["typed"]["prompts"]:
        cut = words["cut"] if one["finish_reason"] == "length" else ""
        parts.append(f"```text\n{one['prompt']}{one['completion']}{cut}\n```")
    return "\n\n".join(parts)


def rows_of(log: Path) -> list[dict[str, str]]:
    with open(log, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def draw(log: Path, refined: Path, file: Path) -> None:
    """Training and validation loss over the tokens seen; the rewards of refinement."""
    import matplotlib.pyplot as plt  # slow to import, and needed for this alone

    rows = rows_of(log)
    plt.rcParams["svg.hashsalt"] = "builtin"  # the same picture from the same log
    figure, (axis, right) = plt.subplots(
        1, 2, figsize=(10, 4.5), width_ratios=(2, 1), layout="constrained"
    )
    millions = [int(row["tokens"]) / 1e6 for row in rows]
    axis.plot(millions, [float(row["loss"]) for row in rows], lw=0.8, alpha=0.6, label="training")
    held_out = [
        (x, float(row["valid"])) for x, row in zip(millions, rows, strict=True) if row["valid"]
    ]
    axis.plot(*zip(*held_out, strict=True), "-o", ms=3, label="held-out files")
    axis.set_xlabel("million tokens")
    axis.set_ylabel("nats a token")
    axis.set_ylim(top=6)
    axis.legend()
    played = rows_of(refined)
    rounds = [int(row["round"]) for row in played]
    right.plot(rounds, [100 * float(row["reward"]) for row in played], "-o", ms=3)
    right.set_xlabel("round of refinement")
    right.xaxis.get_major_locator().set_params(integer=True)
    right.set_ylabel("rewarded completions of training headers (%)")
    for one in (axis, right):
        one.grid(alpha=0.3)
    figure.savefig(file, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--record", type=Path, default=RECORD, help="of evaluate.py")
    parser.add_argument("--log", type=Path, default=LOG, help="of train.py")
    parser.add_argument("--refined", type=Path, default=REFINED, help="of refine.py")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the pages and plots/")
    options = parser.parse_args()
    record = json.loads(options.record.read_text(encoding="utf-8"))
    for language, name in PAGES.items():
        page = options.docs / name
        before, rest = page.read_text(encoding="utf-8").split(BEGIN)
        _, after = rest.split(END)
        text = evaluation(record, WORDS[language])
        page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
    draw(options.log, options.refined, options.docs / "plots" / "training.svg")


if __name__ == "__main__":
    main()
