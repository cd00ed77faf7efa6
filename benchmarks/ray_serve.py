"""How much of their prompts editors find with the replica that they are sent to, by routing.

    python benchmarks/ray_serve.py
    python benchmarks/ray_serve.py --ray auto      # on a cluster that runs

Editors type in files of Python's standard library, half of them under the same licence; an editor
asks again after some characters, now and then after a change further up. All of them come from one
address. The server is `serve --ray` as it is, over a tiny model with random weights and CodeGen's
tokenizer, which answers with one token; each replica's prefix cache has room for the prompts of so
many editors. "random" sends each request anywhere, "prompt" is what the server does by itself,
"session" has editors send x-session-id, and "tree" is Ray's own router by prefixes. Hit rates are
of all tokens of prompts, an editor's first ones, which nobody knows, included. Writes JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import socket
import sysconfig
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import ray
from compare import machine
from make_checkpoint import SIZES, write_checkpoint
from ray.llm._internal.serve.routing_policies.prefix_aware.prefix_aware_router import (
    # Its public name, in ray.serve.llm, can be imported only where vLLM or SGLang is.
    PrefixCacheAffinityRouter,
)
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

from paddlenlp_codegen_task.distributed import application, cluster, running
from paddlenlp_codegen_task.serving.settings import Settings

LICENCE = "".join(
    f"# {'Licensed under the terms of line'} {n} of a long licence.\n" for n in range(12)
)
CHANGED = 0.1  # share of an editor's pauses after which a line further up has been changed
AT_ONCE = 16
PROMPT_TOKENS = 800  # about, of an editor's
TOKEN_BYTES = 2 * 4 * SIZES["tiny"]["n_layer"] * SIZES["tiny"]["n_embd"]


class Tree(PrefixCacheAffinityRouter):  # type: ignore[misc]
    """Ray's router by prefixes, which reads the prompt of what is sent to a replica here."""

    def _extract_text_from_request(self, pending_request: Any) -> str:
        found = json.loads(pending_request.args[1] or b"{}")
        return str(found.get("prompt", " "))


ROUTINGS = ("random", "prompt", "session")


class Editor:
    """Somebody who writes a file again, as it is in the standard library."""

    def __init__(self, name: str, text: str, seed: str) -> None:
        self.name, self._text = name, text
        self._random = random.Random(seed)
        self._begun = self._random.randint(1500, 3000)
        self.prompt = text[: self._begun]

    def type(self) -> None:
        """Some characters more; now and then, another line further up."""
        self._begun += self._random.randint(10, 60)
        self.prompt = self._text[: self._begun]
        if self._random.random() < CHANGED:
            lines = self._text[: self._begun].split("\n")
            lines[self._random.randrange(len(lines))] += "  # changed"
            self._text = "\n".join(lines) + self._text[self._begun :]
            self.prompt = "\n".join(lines)
            self._begun = len(self.prompt)


def editors(count: int, run: str) -> list[Editor]:
    """Editors whose files begin with the name of a run: no run finds what another has left."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = (file for file in sorted(folder.rglob("*.py")) if file.stat().st_size > 6000)
    found: list[Editor] = []
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace")
        head = f"# {run}\n" + LICENCE * (len(found) % 2)
        found.append(Editor(f"{run}-{len(found)}", head + text, f"{run}-{len(found)}"))
        if len(found) == count:
            return found
    raise SystemExit(f"there are {len(found)} files of the standard library, and no {count}")


def asked(client: httpx.Client, editor: Editor, routing: str) -> tuple[int, int]:
    """Tokens of an editor's prompt, and how many of them its replica had."""
    sessions = {"session": editor.name, "random": uuid.uuid4().hex}
    headers = {"x-session-id": sessions[routing]} if routing in sessions else {}
    body = {"prompt": editor.prompt, "max_tokens": 1, "token_healing": False}
    answer = client.post("/v1/completions", json=body, headers=headers)
    answer.raise_for_status()
    usage = answer.json()["usage"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def loads(client: httpx.Client) -> dict[str, float]:
    """Tokens of prompts that each replica has had."""
    pattern = r'^paddlenlp_codegen:prompt_tokens_total{.*replica="(\w+)".*} (\S+)$'
    found = re.findall(pattern, client.get("/metrics").text, re.MULTILINE)
    return {replica: float(count) for replica, count in found}


def measure(client: httpx.Client, routing: str, options: argparse.Namespace) -> dict[str, Any]:
    """All editors, as often as they ask, in any order."""
    order, everybody = random.Random(0), editors(options.editors, routing)
    before, tokens, cached = loads(client), 0, 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in range(options.requests):
            order.shuffle(everybody)
            for had, found in pool.map(lambda one: asked(client, one, routing), everybody):
                tokens, cached = tokens + had, cached + found
            for editor in everybody:
                editor.type()
    each = [count - before[replica] for replica, count in loads(client).items()]
    return {
        "routing": routing,
        "hit_rate": cached / tokens,
        "prompt_tokens": tokens / options.editors / options.requests,
        "busiest_over_mean": max(each) * len(each) / sum(each),
    }


@contextmanager
def served(options: argparse.Namespace, room: int, router: type[Any]) -> Iterator[httpx.Client]:
    """Replicas with room for the prompts of so many editors, one of which a router chooses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    loading = {
        "model": str(options.work / "tiny"),
        "home_path": str(options.work),
        "engine": "onnxruntime",
        "precision": "fp32",
        "num_threads": 1,
        "kv_cache_bytes": 1 << 28,
        "prefix_cache_bytes": room * PROMPT_TOKENS * TOKEN_BYTES,
    }
    settings = Settings(token_healing=False)
    with mock.patch.object(application, "ConsistentHashRouter", router):
        built = application.build(loading, settings, options.replicas, "warning")
    with (
        running.deployed(built, "127.0.0.1", port),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client,
    ):
        yield client


@contextmanager
def connected(options: argparse.Namespace) -> Iterator[None]:
    """A cluster: the one that is there, or one of this process."""
    if options.ray is not None:
        with cluster.connected(options.ray):
            yield
        return
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        ray.init(
            num_cpus=options.replicas,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=1 << 28,
            _temp_dir=folder,
        )
        try:
            yield
        finally:
            ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ray", metavar="ADDRESS", help="of a cluster; else one is started")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--editors", type=int, default=200)
    parser.add_argument("--requests", type=int, default=8, help="of each editor")
    parser.add_argument("--rooms", type=int, nargs="+", default=[25, 50, 200], metavar="EDITORS")
    parser.add_argument("--routing", nargs="+", default=[*ROUTINGS, "tree"], metavar="NAME")
    parser.add_argument("--work", type=Path, default=Path("build/ray_serve"), help="for the model")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    options.work = options.work.resolve()
    write_checkpoint(options.work / "tiny", "tiny")
    written: dict[str, Any] = {"machine": machine(1), "ray": ray.__version__}
    written |= {name: getattr(options, name) for name in ("replicas", "editors", "requests")}
    written["results"] = []
    with connected(options):
        for room in options.rooms:
            for router, names in ((ConsistentHashRouter, ROUTINGS), (Tree, ("tree",))):
                chosen = [name for name in names if name in options.routing]
                if not chosen:
                    continue
                with served(options, room, router) as client:
                    for routing in chosen:
                        found = {"room": room, **measure(client, routing, options)}
                        written["results"].append(found)
                        print(json.dumps(found), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    out = options.out / f"ray_serve-{written['machine']['date']}.json"
    out.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
