"""The server under load: what it adds to the engine, and how it compares with other servers.

    make benchmark-serve

or, with the environments of the Makefile and a checkpoint in place,

    python benchmarks/serve.py build/codegen-350M --parts generate ctranslate

Everything is on one machine: this process is the client, each server is a process of its own, and
is stopped (SIGSTOP) while another one is asked. Prompts are pieces of this package's source, and
none comes twice to a server, so that the prefix cache has a part in the editor's session alone.
All systems generate greedily, as many tokens a request. Parts:

    generate    clients in a closed loop against `generate` on the same prompts in one batch
    ctranslate  the same against CTranslate2 int8 behind a small server that batches
    first_byte  from a request to its first byte, beyond what the engine takes for it
    editor      time to first byte while somebody types in a long file, with the prefix cache or not
    sweep       throughput and latency against the number of clients
    paddlenlp   clients in a closed loop against PaddleNLP's example server
    overload    four times the load that can be carried, while a third of the clients hang up

Each writes its results at once, into benchmarks/results/serve-<date>.json beside those of the same
day; serve_report.py turns them into a table and plots.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from compare import SYSTEMS, System, machine, versions
from servers import SMALL, Bench, Server, Sizes, rate, whole
from sse_client import Answer, open_loop

from paddlenlp_codegen_task.finding import BUILTIN_FOLDER

HERE = Path(__file__).resolve().parent

# The least that is wanted of each; the second is whether it is met by less.
FLOORS: dict[str, tuple[float, bool]] = {
    "generate.ratio": (0.9, False),
    "paddlenlp.ratio": (20, False),
    "ctranslate.ratio": (1.5, False),
    "first_byte.1.beyond_engine_seconds": (0.002, True),
    "first_byte.32.beyond_engine_seconds": (0.010, True),
    "editor.times_faster": (8, False),
    "overload.lost": (0, True),
    "overload.memory_growth": (0.03, True),
    "overload.other_answers": (0, True),
}


# The parts


def in_alternation(rounds: int, ways: dict[str, Callable[[list[str]], float]], bench: Bench) -> Any:
    """Tokens a second of ours and one other, on the same prompts round by round."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        prompts = bench.prompts(bench.sizes.requests)
        names = list(ways) if number % 2 else list(ways)[::-1]
        for name in names:
            found[name].append(ways[name](prompts))
        print(
            number + 1, {name: round(values[-1], 1) for name, values in found.items()}, flush=True
        )
    ours, other = found.values()
    ratios = [a / b for a, b in zip(ours, other, strict=True)]
    return {
        **{f"{name}_tokens_per_second": statistics.median(all_) for name, all_ in found.items()},
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


def over_http(bench: Bench, server: Server) -> Callable[[list[str]], float]:
    sizes = bench.sizes
    return lambda prompts: rate(server.load(prompts, sizes.clients), sizes.new_tokens)


def generate(bench: Bench) -> Any:
    sizes, server = bench.sizes, bench.ours()

    def directly(prompts: list[str]) -> float:
        found = server.ask(
            "generate", prompts=prompts, new_tokens=sizes.new_tokens, batch_size=sizes.clients
        )
        assert found["tokens"] == len(prompts) * sizes.new_tokens
        return float(found["tokens"] / found["seconds"])

    ways = {"ours": over_http(bench, server), "generate": directly}
    return in_alternation(sizes.rounds, ways, bench)


def ctranslate(bench: Bench) -> Any:
    other = bench.server("serve_ctranslate", "CTranslate2 int8")
    ways = {"ours": over_http(bench, bench.ours()), "peer": over_http(bench, other)}
    return in_alternation(bench.sizes.rounds, ways, bench)


def paddlenlp(bench: Bench) -> Any:
    """It works on, one by one, for clients that are gone: so it is started for each round."""
    sizes = bench.sizes

    def peer(prompts: list[str]) -> float:
        server = bench.server("serve_paddlenlp", "PaddleNLP fp32")
        answers = server.load(prompts, sizes.clients, sizes.one_by_one)
        bench.forget(server)
        return rate(answers, sizes.new_tokens)

    ways = {"ours": over_http(bench, bench.ours()), "peer": peer}
    return in_alternation(sizes.rounds, ways, bench)


def first_byte(bench: Bench) -> Any:
    """Beyond the engine's own time: from what it is given the request to its first text.

    Many clients come all at once, which is the worst, and spread over the time of an answer.
    """
    sizes, server = bench.sizes, bench.ours()
    results: dict[str, Any] = {}
    answers: list[Answer] = []
    for name, clients, count in (
        ("1", 1, sizes.one_client),
        ("32", sizes.clients, sizes.requests),
        ("32_in_turn", sizes.clients, sizes.requests),
    ):
        in_turn = name.endswith("in_turn")
        spread = statistics.median(one.seconds for one in answers) if in_turn else 0.0
        server.ask("engine_seconds")
        over, direct, beyond = [], [], []
        for number in range(sizes.rounds):
            for way in ("http", "direct") if number % 2 else ("direct", "http"):
                prompts = bench.prompts(count)
                if way == "http":
                    answers = server.load(prompts, clients, spread=spread)
                    own = server.ask("engine_seconds")
                    over += [one.first_seconds for one in answers]
                    beyond += [one.first_seconds - own[one.prompt] for one in answers]
                elif not in_turn:
                    found = server.ask(
                        "streams", prompts=prompts, new_tokens=sizes.new_tokens, clients=clients
                    )
                    direct += found["first_seconds"]
                    server.ask("engine_seconds")
        results[name] = {
            "clients": clients,
            "spread_seconds": spread,
            "requests": len(beyond),
            "beyond_engine_seconds": statistics.median(beyond),
            "beyond_engine_seconds_p95": quantile(beyond, 0.95),
            "first_byte_seconds": statistics.median(over),
            "stream_first_text_seconds": statistics.median(direct) if direct else None,
        }
    return results


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def typed(text: str, more: str, count: int) -> Iterator[str]:
    """What a file is after each of so many keystrokes at its end; one in ten takes back another."""
    rng = random.Random(0)
    lines = iter(more)
    for _ in range(count):
        text = text[:-1] if rng.random() < 0.1 else text + next(lines)
        yield text


def editor(bench: Bench) -> Any:
    """Each keystroke's request drops the one before, whose completion is still coming."""
    sizes = bench.sizes
    text, more = bench.file()
    servers = {
        "with": bench.ours("--prefix-cache-bytes", str(sizes.cache_bytes)),
        "without": bench.ours(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in servers}

    async def first(server: Server, prompt: str) -> float:
        answer = await server.connect().ask(prompt, only_first=True)
        if answer.status != 200 or answer.problem:
            raise SystemExit(f"a keystroke was not answered: {answer}")
        return answer.first_seconds

    for server in servers.values():  # the buffers grow to the file's length
        server.serve(first(server, text))
    for number, prompt in enumerate(typed(text, more, sizes.keystrokes)):
        for name, server in servers.items():
            if name == "with" or number % sizes.without_every == 0:
                seconds[name].append(server.serve(first(server, prompt)))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "keystrokes": {name: len(values) for name, values in seconds.items()},
        "first_byte_seconds_with": medians["with"],
        "first_byte_seconds_with_p95": quantile(seconds["with"], 0.95),
        "first_byte_seconds_without": medians["without"],
        "times_faster": medians["without"] / medians["with"],
    }


def sweep(bench: Bench) -> Any:
    """Ours, and CTranslate2's where its environment is."""
    servers = {"ours": bench.ours()}
    system = bench.system("CTranslate2 int8")
    if (bench.root / system.environment / "bin" / "python").exists():
        servers["CTranslate2"] = bench.server("serve_ctranslate", system.label)
    results: dict[str, Any] = {name: {} for name in servers}
    for clients in bench.sizes.sweep:
        prompts = bench.prompts(max(2 * clients, min(8, bench.sizes.requests)))
        for name, server in servers.items():
            answers = server.load(prompts, clients)
            firsts = [one.first_seconds for one in answers]
            whole_ = [one.seconds for one in answers]
            results[name][str(clients)] = {
                "requests": len(answers),
                "tokens_per_second": rate(answers, bench.sizes.new_tokens),
                "first_byte_seconds": statistics.median(firsts),
                "first_byte_seconds_p95": quantile(firsts, 0.95),
                "seconds": statistics.median(whole_),
                "seconds_p95": quantile(whole_, 0.95),
            }
        print(clients, {name: results[name][str(clients)] for name in servers}, flush=True)
    return results


def overload(bench: Bench) -> Any:
    sizes = bench.sizes
    most = 2 * sizes.clients
    arguments = ("--prefix-cache-bytes", str(sizes.cache_bytes), "--max-waiting", str(most))
    server = bench.ours(*arguments, "--batch-size", str(sizes.clients))
    # The load that it can carry: what clients in a closed loop get.
    answers = server.load(bench.prompts(2 * sizes.clients), sizes.clients)
    carried = rate(answers, sizes.new_tokens) / sizes.new_tokens
    waiting = statistics.median(one.seconds for one in answers)
    seconds = 60 * sizes.minutes
    prompts = bench.prompts(int(4 * carried * seconds * 1.2) + 16)
    load = server.serve(
        open_loop(server.connect, prompts, 4 * carried, seconds, 3 * waiting, server.resident)
    )
    server.load(bench.prompts(2), 2)  # and it answers as ever
    answered = [one for one in load.answers if not one.hung_up]
    accepted = [one for one in answered if one.status == 200]
    other = [one for one in answered if one.status not in (200, 429)]
    for one in other[:5]:
        print("another answer:", one, flush=True)
    after = min(60.0, seconds / 5)
    return {
        "minutes": sizes.minutes,
        "carried_requests_per_second": carried,
        "requests_per_second": 4 * carried,
        "max_waiting": most,
        "requests": len(load.answers),
        "hung_up": len(load.answers) - len(answered),
        "accepted": len(accepted),
        "refused": sum(one.status == 429 for one in answered),
        "refused_seconds": statistics.median(
            [one.seconds for one in answered if one.status == 429] or [0.0]
        ),
        "tokens_per_second": len(accepted) * sizes.new_tokens / seconds,
        "lost": sum(not whole(one, sizes.new_tokens) for one in accepted),
        "other_answers": len(other),
        "memory_growth": growth(load.seen, after),
        "resident_bytes": [load.seen[0][1], load.seen[-1][1]],
    }


def growth(resident: list[tuple[float, int]], after: float) -> float:
    """Share by which memory has grown at the end since `after`: means of a tenth of the time."""
    span = resident[-1][0] / 10
    then = [size for at, size in resident if abs(at - after) <= span / 2]
    now = [size for at, size in resident if at >= resident[-1][0] - span]
    return statistics.mean(now) / statistics.mean(then or [resident[0][1]]) - 1


PARTS: dict[str, Callable[[Bench], Any]] = {
    "generate": generate,
    "ctranslate": ctranslate,
    "first_byte": first_byte,
    "editor": editor,
    "sweep": sweep,
    "paddlenlp": paddlenlp,
    "overload": overload,
}


def timed(part: Callable[[Bench], Any], bench: Bench) -> Any:
    """A part's results, and what else has worked: this client, and others on the machine."""
    served, used = Server.served_seconds, Server.client_seconds
    busy, total, own = *processors(), bench.processor_seconds()
    found = part(bench)
    found["client_share_of_a_core"] = (Server.client_seconds - used) / (
        Server.served_seconds - served
    )
    busy_now, total_now = processors()
    others = busy_now - busy - (bench.processor_seconds() - own)
    found["others_share_of_the_machine"] = others / (total_now - total)
    return found


def processors() -> tuple[float, float]:
    """Seconds that all processors have worked, and been there."""
    line = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0]
    ticks = [int(number) for number in line.split()[1:9]]
    idle = ticks[3] + ticks[4]
    each = os.sysconf("SC_CLK_TCK")
    return (sum(ticks) - idle) / each, sum(ticks) / each


def missed(results: dict[str, Any]) -> list[str]:
    """What is not as was wanted, of what was measured."""
    found = []
    for name, (floor, less) in FLOORS.items():
        value: Any = results
        for key in name.split("."):
            value = value.get(key) if value else None
        if value is not None and (value > floor if less else value < floor):
            found.append(f"{name}: {value:.4g}, wanted {'at most' if less else 'at least'} {floor}")
    return found


def about(options: argparse.Namespace, systems: list[System]) -> dict[str, Any]:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    names = re.findall(r"\b(avx2|avx512f|avx512_vnni|avx_vnni|amx_int8)\b", flags)
    root = options.environments.resolve()
    return {
        "machine": {
            **machine(options.threads),
            "vector_instructions": sorted(set(names)),
            "cores": os.cpu_count(),
            **{name: version(name) for name in ("fastapi", "uvicorn")},
        },
        "versions": versions(
            {
                root / one.environment
                for one in systems
                if (root / one.environment / "bin" / "python").exists()
            }
        ),
        "precision": options.precision,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, nargs="?", default=BUILTIN_FOLDER)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--minutes", type=float, help="of the overload")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--small", action="store_true", help="little of everything, to try it")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--work", type=Path, default=Path("build/compare"), help="prepared models")
    parser.add_argument("--environments", type=Path, default=HERE.parent, help="folder of .venv*")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    sizes = SMALL if options.small else Sizes()
    given = {name: getattr(options, name) for name in ("minutes", "rounds")}
    sizes = replace(sizes, **{name: value for name, value in given.items() if value is not None})
    bench = Bench(options, sizes)
    labels = (f"ours {options.precision}", "CTranslate2 int8", "PaddleNLP fp32")
    results = about(options, [one for one in SYSTEMS if one.label in labels])
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"serve-{results['machine']['date']}.json"
    if path.exists():
        results = {**json.loads(path.read_text(encoding="utf-8")), **results}
    try:
        for name in options.parts:
            results[name] = timed(PARTS[name], bench)
            results["missed"] = missed(results)
            print(name, json.dumps(results[name]), flush=True)
            path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    finally:
        bench.close()
    print(path)


if __name__ == "__main__":
    main()
