"""How long somebody who types waits: for the first of a completion at each key, and for a line.

    make benchmark-keystroke

or, with the environments of the Makefile in place,

    python benchmarks/keystroke.py build/codegen-350M --precisions int8 int4

A session in files of Python's standard library (typing_session.py). Each key asks for what goes on
from the text before the cursor, and the next key drops that once there is some of it (or so many
milliseconds later, `--between`). At the end of a line, and now and then within one, the whole
completion is waited for: LINE_TOKENS new tokens, as random weights end no line. Greedy search.

Ours is asked as its server is by an editor: with the prefix cache, and with token healing, whose
tokens that only spell what was typed already are not counted as new. "First" is then the first new
character. A system that keeps nothing of a prompt is asked at one key in `every` only, and at all
that are waited for. Every system runs in a process of its own, started anew in each round, and is
stopped (SIGSTOP) while another one is asked; they take turns file by file.

Writes benchmarks/results/keystroke-<date>.json after each round, and goes on from there: rounds of
a system that the file has are not run again. `--pages` puts a table into the documentation.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compare import SYSTEMS, Worker, machine, prepare, versions
from compare import System as Prepared
from typing_session import FILES, Visit, session

from paddlenlp_codegen_task.model.tokenizer import Tokenizer

HERE = Path(__file__).resolve().parent
LINE_TOKENS = 12  # of a completion that is waited for
WARM_UP = [["def add(a, b):\n    return ", True]]  # other systems ran since: not to count
BEGIN, END = "<!-- keystrokes -->", "<!-- end of keystrokes -->"


@dataclass(frozen=True)
class System:
    """One row of the comparison.

    Attributes:
        prepared: how its weights are converted: a system of `compare`.
        peer: the file in peers/ that runs it.
        every: it is asked at one in so many of the keys that are not waited for.
        label: its name here; by default that of `prepared`.
        instead_of: it is asked only if the system of this name cannot be.
    """

    prepared: Prepared
    peer: str
    every: int = 1
    label: str = ""
    instead_of: str = ""

    @property
    def name(self) -> str:
        return self.label or self.prepared.label


def systems(precisions: Sequence[str], every: int) -> list[System]:
    """Ours in these precisions, and the peers."""
    of = {one.label: one for one in SYSTEMS}
    ours = [
        Prepared(f"ours {name.replace('+kv_', ', KV ')}", "ours", name, ".venv")
        for name in precisions
    ]
    genai = "OpenVINO GenAI int8, prefix cache"
    return [
        *(System(one, "keystroke_ours") for one in ours),
        System(of["CTranslate2 int8"], "keystroke_ctranslate", every),
        System(of["OpenVINO int8"], "keystroke_genai", label=genai),
        System(of["OpenVINO int8"], "keystroke_openvino", every, instead_of=genai),
    ]


class Cannot(Exception):
    """A system cannot be asked here."""


class Editor:
    """A system's process, and what the typist saw of it in one round."""

    def __init__(self, system: System, folder: Path, options: argparse.Namespace) -> None:
        self._system = system
        self._between: float = options.between / 1e3
        of = system.prepared
        run = Prepared(system.name, system.peer, of.precision, of.environment)
        self._worker = Worker(run, folder, options.threads, options.environments.resolve())
        self._worker.start()
        self.found: dict[str, Any] = {
            "opened_seconds": [],
            "first_seconds": [],
            "line_seconds": [],
            "prompt_tokens": [],
        }
        self._keys = 0

    def type(self, visit: Visit, tokenizer: Tokenizer) -> None:
        """Have a visit's keys answered.

        Raises:
            Cannot: the process has ended.
        """
        asked = [n for n, key in enumerate(visit.keys) if key.whole or self._turn(n, visit)]
        keys = [[visit.keys[n].prompt, visit.keys[n].whole] for n in asked]
        self._exchange(WARM_UP, 3)
        answers = self._exchange(keys, LINE_TOKENS)
        for n, answer in zip(asked, answers, strict=True):
            key = visit.keys[n]
            expected = len(tokenizer.encode(key.prompt))
            if answer["prompt_tokens"] != expected:
                raise SystemExit(
                    f"{self._system.name} read {answer['prompt_tokens']} tokens for {expected}"
                )
            opened = visit.first and n == 0
            kind = "opened_seconds" if opened else "first_seconds"
            self.found[kind].append(answer["first_seconds"])
            if key.whole and not opened:
                self.found["line_seconds"].append(answer["seconds"])
            self.found["prompt_tokens"].append(expected)

    def stop(self) -> None:
        self._worker.stop()

    def _turn(self, number: int, visit: Visit) -> bool:
        """Whether a key that is not waited for is asked about."""
        self._keys += 1
        return (visit.first and number == 0) or self._keys % self._system.every == 0

    def _exchange(self, keys: list[list[Any]], new_tokens: int) -> list[dict[str, Any]]:
        request = {"keys": keys, "new_tokens": new_tokens, "between": self._between}
        try:
            answers: list[dict[str, Any]] = self._worker.exchange(request)["keys"]
        except (SystemExit, OSError) as error:
            raise Cannot(last_line(str(error))) from error
        return answers


def last_line(said: str) -> str:
    """What a process has said last, which is its error."""
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it ended without a word"


def started(system: System, options: argparse.Namespace) -> Editor:
    """A system that is ready to be asked.

    Raises:
        Cannot: it is not installed, or does not take the model.
    """
    root = options.environments.resolve()
    environment = system.prepared.environment
    if not (root / environment / "bin" / "python").exists():
        raise Cannot(f"not installed: make {environment}/done")
    checkpoint, work = options.checkpoint.resolve(), options.work.resolve()
    try:
        folder = prepare(system.prepared, checkpoint, work, root)
    except subprocess.CalledProcessError as error:
        raise Cannot(f"its weights were not converted: {error}"[:300]) from error
    return Editor(system, folder, options)


def run_round(
    todo: Sequence[System],
    visits: Sequence[Visit],
    tokenizer: Tokenizer,
    options: argparse.Namespace,
    found: dict[str, Any],
) -> None:
    """Ask systems, and add a round of each to `found`, or why it cannot be asked."""
    names = {system.name for system in todo} | set(found)
    editors: dict[str, Editor] = {}
    try:
        for number, visit in enumerate(visits):
            for system in todo:
                if system.instead_of in names and "error" not in found[system.instead_of]:
                    continue
                own = found.setdefault(system.name, {"rounds": []})
                try:
                    if not number and "error" not in own:
                        editors[system.name] = started(system, options)
                    if system.name in editors:
                        editors[system.name].type(visit, tokenizer)
                        print(f"{visit.file:16} {system.name}", flush=True)
                except Cannot as error:
                    own["error"] = str(error)
                    print(f"{system.name}: {error}", flush=True)
                    if system.name in editors:
                        editors.pop(system.name).stop()
        for name, editor in editors.items():
            found[name]["rounds"].append(editor.found)
    finally:
        for editor in editors.values():
            editor.stop()


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def summary(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians and 95th percentiles of all rounds together."""
    found: dict[str, Any] = {}
    for name in ("opened_seconds", "first_seconds", "line_seconds"):
        values = [value for one in rounds for value in one[name]]
        if values:
            found[name] = statistics.median(values)
            found[f"{name}_p95"] = quantile(values, 0.95)
            found[f"{name}_count"] = len(values)
    return found


def against_the_best(found: dict[str, Any]) -> dict[str, Any]:
    """Ours over the best peer, by medians, round by round; below 1 is better."""
    results: dict[str, Any] = {}
    peers = {name: one for name, one in found.items() if not name.startswith("ours")}
    for name, one in found.items():
        if not name.startswith("ours"):
            continue
        for kind in ("first_seconds", "line_seconds"):
            ratios, best = [], ""
            for number, own in enumerate(one["rounds"]):
                others = {
                    peer: statistics.median(of["rounds"][number][kind])
                    for peer, of in peers.items()
                    if len(of["rounds"]) > number
                }
                if others:
                    best = min(others, key=others.__getitem__)
                    ratios.append(statistics.median(own[kind]) / others[best])
            if ratios:
                results.setdefault(name, {})[kind] = {
                    "ratio": statistics.median(ratios),
                    "ratio_range": [min(ratios), max(ratios)],
                    "best_peer": best,
                }
    return results


HEADS = (
    "| | a key, to the first new character (ms) | 95 % | a line of 12 tokens (ms) | 95 % "
    "| a line, over the best peer's | a file just opened (ms) |",
    "| | 按键到首个新字符（毫秒） | 95 % | 12 个 token 的一行（毫秒） | 95 % "
    "| 一行，与最好的其他系统之比 | 刚打开的文件（毫秒） |",
)


def table(results: dict[str, Any], head: str) -> str:
    """What was measured, a row a system, in the language of `head`."""
    lines = [head, "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for name, one in results["systems"].items():
        if "first_seconds" not in one:
            continue
        cells = [one["first_seconds"], one["first_seconds_p95"]]
        cells += [one["line_seconds"], one["line_seconds_p95"]]
        ratio = results["against_the_best_peer"].get(name, {}).get("line_seconds")
        shown = [f"{1e3 * value:,.0f}" for value in cells]
        shown.append(f"**{ratio['ratio']:.2f}**" if ratio else "")
        shown.append(f"{1e3 * one['opened_seconds']:,.0f}")
        lines.append(f"| {name} | {' | '.join(shown)} |")
    about = results["machine"]
    return f"{about['cpu']}, {about['threads']} threads, {about['date']}\n\n" + "\n".join(lines)


def write_into(page: Path, text: str) -> None:
    """Put a table where a page has its place."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def about(options: argparse.Namespace, visits: Sequence[Visit]) -> dict[str, Any]:
    """The machine, and what is typed: what has to be the same for rounds to go together."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    names = re.findall(r"\b(avx2|avx512f|avx512_vnni|avx_vnni|amx_int8)\b", flags)
    return {
        "machine": {**machine(options.threads), "vector_instructions": sorted(set(names))},
        "session": {
            "files": list(FILES),
            "keys": sum(len(visit.keys) for visit in visits),
            "waited_for": sum(key.whole for visit in visits for key in visit.keys),
            "characters": sum(len(key.prompt) for visit in visits for key in visit.keys),
            "line_tokens": LINE_TOKENS,
            "between_ms": options.between,
            "every": options.every,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument(
        "--precisions",
        nargs="+",
        default=["int4", "int4_int8", "int4+kv_int8", "int4_int8+kv_int8"],
        help="of ours; +kv_int8: keys and values in 8 bits",
    )
    parser.add_argument("--only", nargs="*", help="names of the systems to run", metavar="NAME")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--visits", type=int, default=2, help="of each file")
    parser.add_argument("--keys", type=int, default=30, help="of each visit")
    parser.add_argument("--tokens", type=int, default=1000, help="before the cursor at first")
    parser.add_argument("--between", type=float, default=0.0, help="ms between keys, at least")
    parser.add_argument("--every", type=int, default=8, help="keys for a peer that keeps nothing")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=Path("build/compare"), help="prepared models")
    parser.add_argument("--environments", type=Path, default=HERE.parent, help="folder of .venv*")
    parser.add_argument("--pages", type=Path, nargs=2, help="documentation, English and Chinese")
    options = parser.parse_args()
    chosen = systems(options.precisions, options.every)
    if options.only is not None:
        chosen = [one for one in chosen if one.name in options.only]
    tokenizer = Tokenizer.from_folder(options.checkpoint)
    visits = session(tokenizer, options.tokens, options.visits, options.keys)
    results: dict[str, Any] = about(options, visits)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"keystroke-{results['machine']['date']}.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if before and any(before[name] != results[name] for name in results):
        raise SystemExit(f"{path} is of another machine or session: move it away, or give --out")
    found: dict[str, Any] = before.get("systems", {})
    for one in chosen:
        found.get(one.name, {}).pop("error", None)  # it may be installed by now
    root = options.environments.resolve()
    environments = {root / one.prepared.environment for one in chosen}
    results["versions"] = before.get("versions", {}) | versions(
        {one for one in environments if (one / "bin" / "python").exists()}
    )
    for number in range(options.rounds):
        todo = [
            one for one in chosen if len(found.get(one.name, {"rounds": []})["rounds"]) <= number
        ]
        if not todo:
            continue
        print(f"round {number + 1} of {options.rounds}", flush=True)
        run_round(todo, visits, tokenizer, options, found)
        for one in found.values():
            one.update(summary(one["rounds"]))
        results["systems"] = found
        results["against_the_best_peer"] = against_the_best(found)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    results = json.loads(path.read_text(encoding="utf-8"))
    for page, head in zip(options.pages or (), HEADS, strict=False):
        write_into(page, table(results, head))
    print(table(results, HEADS[0]))
    print(path)


if __name__ == "__main__":
    main()
