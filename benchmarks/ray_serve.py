"""How much of their prompts editors find with the replica that they are sent to, by routing.

    python benchmarks/ray_serve.py
    python benchmarks/ray_serve.py --ray auto      # on a cluster that runs, and has a CPU a replica

Editors type in files of Python's standard library, half of them under the same licence; an editor
asks again after some characters, now and then after a change further up. All of them come from one
address. Each replica's prefix cache has room for the prompts of so many editors.

"random" sends each request anywhere, "prompt" is what `serve --ray` does by itself, "session" has
editors send x-session-id, and "tree" is Ray's own router by prefixes (PrefixCacheAffinityRouter).
Without --ray, there are prefix caches for replicas, with the tokens that they would have but no
model, and the ring and the tree of Ray's routers. With it, the server is as `serve --ray` starts
it, over a tiny model with random weights; "tree" is not measured then. Hit rates are of all tokens
of prompts, an editor's first ones, which nobody knows, included. Writes JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
import socket
import sysconfig
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
import ray
from compare import machine
from make_checkpoint import SIZES, write_checkpoint
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.experimental.consistent_hash_router import (
    DEFAULT_NUM_FALLBACK_REPLICAS,
    DEFAULT_NUM_VIRTUAL_NODES,
    ConsistentHashRouter,
)

from paddlenlp_codegen_task.decoding.prefix_cache import PrefixCache
from paddlenlp_codegen_task.distributed import application, cluster, routing, running
from paddlenlp_codegen_task.model.tokenizer import Tokenizer
from paddlenlp_codegen_task.serving.settings import Settings

ROUTINGS = ("random", "prompt", "session", "tree")
LICENCE = "".join(f"# Licensed under the terms of line {n} of a long licence.\n" for n in range(12))
CHANGED = 0.1  # share of an editor's pauses after which a line further up has been changed
PROMPT_TOKENS = 800  # about, of an editor's
TOKEN_BYTES = 2 * 4 * SIZES["tiny"]["n_layer"] * SIZES["tiny"]["n_embd"]
AT_ONCE = 16  # requests to a server


class Editor:
    """Somebody who writes a file again, as it is in the standard library."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self._text = name, text
        self.random = random.Random(name)
        self._end = self.random.randint(1500, 3000)
        self.prompt = text[: self._end]

    def type(self) -> None:
        """Some characters more; now and then, another line further up."""
        self._end += self.random.randint(10, 60)
        if self.random.random() < CHANGED:
            lines = self._text.split("\n")
            lines[self.random.randrange(self._text.count("\n", 0, self._end) + 1)] += "  # changed"
            self._text = "\n".join(lines)
        self.prompt = self._text[: self._end]


def editors(count: int, run: str) -> list[Editor]:
    """Editors whose files begin with the name of a run: no run finds what another has left."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = (file for file in sorted(folder.rglob("*.py")) if file.stat().st_size > 6000)
    found: list[Editor] = []
    for file in files:
        text = f"# {run}\n" + LICENCE * (len(found) % 2) + file.read_text("utf-8", "replace")
        found.append(Editor(f"{run}-{len(found)}", text))
        if len(found) == count:
            return found
    raise SystemExit(f"the standard library has {len(found)} files of that size, and no {count}")


class Replicas(Protocol):
    """What editors ask."""

    def asked(self, editor: Editor, chosen: str) -> tuple[int, int]:
        """Tokens of the editor's prompt, and how many of them its replica had."""

    def loads(self) -> list[float]:
        """Tokens of prompts that each replica has had."""


class Caches:
    """Prefix caches alone, which Ray's routers choose among."""

    def __init__(self, tokenizer: Tokenizer, count: int, room: int) -> None:
        # The package's __init__ would ask for an engine, and for the actor that holds the tree.
        from ray.llm._internal.serve.routing_policies.prefix_aware.prefix_tree import PrefixTree

        self._tokenizer = tokenizer
        deployment = DeploymentID("Model", "benchmark")
        names = [ReplicaID(f"replica{n}", deployment) for n in range(count)]
        self._caches = {name.unique_id: PrefixCache(room * PROMPT_TOKENS) for name in names}
        self._ring = object.__new__(ConsistentHashRouter)
        self._ring._deployment_id = deployment
        self._ring._num_virtual_nodes = DEFAULT_NUM_VIRTUAL_NODES
        self._ring._num_fallback_replicas = DEFAULT_NUM_FALLBACK_REPLICAS
        self._ring._rebuild_ring(frozenset(names))
        self._tree = PrefixTree()
        self._tree.add_tenants(list(self._caches), 0.0)

    def asked(self, editor: Editor, chosen: str) -> tuple[int, int]:
        ids = self._tokenizer.encode(editor.prompt)
        name = self._by_tree(editor) if chosen == "tree" else self._by_key(editor, chosen)
        cache, tokens = self._caches[name], _Tokens()
        found = cache.restore(tokens, 0, ids)  # type: ignore[arg-type]
        cache.save(tokens, 0, ids)  # type: ignore[arg-type]
        return len(ids), found

    def loads(self) -> list[float]:
        return [cache.asked for cache in self._caches.values()]

    def _by_key(self, editor: Editor, chosen: str) -> str:
        key = routing.key("", [*headers(editor, chosen).items()], json.dumps(body(editor)).encode())
        found: str = self._ring._lookup_ranked_replicas(key)[0].unique_id
        return found

    def _by_tree(self, editor: Editor) -> str:
        """As PrefixCacheAffinityRouter does while the load is even."""
        names = list(self._caches)
        matched, best = self._tree.prefix_match(editor.prompt, names)
        if len(matched) < 0.1 * len(editor.prompt):
            best = self._tree.get_smallest_tenants()
        name: str = editor.random.choice(best or names)
        self._tree.insert(editor.prompt, name, time.time())
        return name


class _Tokens:
    """A KV cache whose tokens take a byte each."""

    def read(self, _slot: int, first: int, last: int) -> list[Any]:
        return [np.zeros((1, last - first, 1), np.uint8)]

    def write(self, _slot: int, _block: list[Any]) -> None:
        pass


class Server:
    """The server on a cluster."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def asked(self, editor: Editor, chosen: str) -> tuple[int, int]:
        named = {name.decode(): value.decode() for name, value in headers(editor, chosen).items()}
        answer = self._client.post("/v1/completions", json=body(editor), headers=named)
        usage = answer.raise_for_status().json()["usage"]
        return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]

    def loads(self) -> list[float]:
        pattern = r'^paddlenlp_codegen:prompt_tokens_total{.*replica="(\w+)".*} (\S+)$'
        found = re.findall(pattern, self._client.get("/metrics").text, re.MULTILINE)
        return [float(count) for _, count in sorted(found)]


def headers(editor: Editor, chosen: str) -> dict[bytes, bytes]:
    sessions = {"session": editor.name, "random": str(editor.random.random())}
    return {routing.SESSION_HEADER: sessions[chosen].encode()} if chosen in sessions else {}


def body(editor: Editor) -> dict[str, Any]:
    return {"prompt": editor.prompt, "max_tokens": 1}


@contextmanager
def served(options: argparse.Namespace, room: int) -> Iterator[Server]:
    """A server on a cluster, whose replicas have room for the prompts of so many editors."""
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
    built = application.build(loading, Settings(token_healing=False), options.replicas, "warning")
    with (
        running.deployed(built, "127.0.0.1", port),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client,
    ):
        yield Server(client)


def measure(replicas: Replicas, chosen: str, options: argparse.Namespace) -> dict[str, Any]:
    """All editors, as often as they ask, in any order."""
    order, everybody = random.Random(0), editors(options.editors, chosen)
    before, tokens, cached = replicas.loads(), 0, 0
    with ThreadPoolExecutor(1 if options.ray is None else AT_ONCE) as pool:
        for _ in range(options.requests):
            order.shuffle(everybody)
            for had, found in pool.map(lambda one: replicas.asked(one, chosen), everybody):
                tokens, cached = tokens + had, cached + found
            for editor in everybody:
                editor.type()
    each = [after - count for after, count in zip(replicas.loads(), before, strict=True)]
    return {
        "routing": chosen,
        "hit_rate": cached / tokens,
        "prompt_tokens": tokens / options.editors / options.requests,
        "busiest_over_mean": max(each) * len(each) / sum(each),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ray", metavar="ADDRESS", help="of a cluster; without it, no server")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--editors", type=int, default=200)
    parser.add_argument("--requests", type=int, default=12, help="of each editor")
    parser.add_argument("--rooms", type=int, nargs="+", default=[25, 50, 200], metavar="EDITORS")
    parser.add_argument("--work", type=Path, default=Path("build/ray_serve"), help="for the model")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    options.work = options.work.resolve()
    write_checkpoint(options.work / "tiny", "tiny")
    written: dict[str, Any] = {"machine": machine(1), "ray": ray.__version__}
    written["server"] = options.ray is not None
    written |= {name: getattr(options, name) for name in ("replicas", "editors", "requests")}
    written["results"] = results = []
    logging.getLogger("ray.serve").setLevel(logging.WARNING)

    def tell(room: int, replicas: Replicas, chosen: str) -> None:
        results.append({"room": room, **measure(replicas, chosen, options)})
        print(json.dumps(results[-1]), flush=True)

    if options.ray is None:
        tokenizer = Tokenizer.from_folder(options.work / "tiny")
        for room in options.rooms:
            for chosen in ROUTINGS:
                tell(room, Caches(tokenizer, options.replicas, room), chosen)
    else:
        with cluster.connected(options.ray):
            for room in options.rooms:
                with served(options, room) as server:
                    for chosen in ROUTINGS[:-1]:
                        tell(room, server, chosen)
    options.out.mkdir(parents=True, exist_ok=True)
    kind = "simulated" if options.ray is None else "server"
    out = options.out / f"ray_serve-{kind}-{written['machine']['date']}.json"
    out.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
