"""How much of their prompts editors find with the replica that they are sent to, by routing.

    python benchmarks/ray_serve.py
    python benchmarks/ray_serve.py --url http://127.0.0.1:8978      # of `serve --ray` that runs

Editors type in files of Python's standard library, half of them under the same licence; an editor
asks again after some characters, now and then after a change further up. All of them come from one
address. "random" sends each request anywhere, "prompt" is what `serve --ray` does by itself,
"session" has editors send x-session-id, and "tree" is Ray's own router by prefixes.

Without --url there is no server: prefix caches stand for replicas, with the tokens that they would
have (CodeGen's tokenizer) and room for the prompts of so many editors, and the ring and the tree of
Ray's routers choose. A server is asked for one token each time; how much its caches take is its
own. Hit rates are of all tokens of prompts, an editor's first ones, which nobody knows, included.
Writes JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
import ray
from compare import machine
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.experimental.consistent_hash_router import (
    DEFAULT_NUM_FALLBACK_REPLICAS,
    DEFAULT_NUM_VIRTUAL_NODES,
    ConsistentHashRouter,
)

from paddlenlp_codegen_task.decoding.prefix_cache import PrefixCache
from paddlenlp_codegen_task.distributed import routing
from paddlenlp_codegen_task.model.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from codegen_tokenizer import write_codegen_tokenizer

ROUTINGS = ("random", "prompt", "session", "tree")
LICENCE = "".join(f"# Licensed under the terms of line {n} of a long licence.\n" for n in range(12))
CHANGED = 0.1  # share of an editor's pauses after which a line further up has been changed
PROMPT_TOKENS = 800  # about, of an editor's
AT_ONCE = 16  # requests to a server


class Editor:
    """Somebody who writes a file again, as it is in the standard library."""

    def __init__(self, name: str, text: str, least: int) -> None:
        self.name, self._text = name, text
        self.random = random.Random(name)
        self._end = self.random.randint(least, 2 * least)
        self.prompt = text[: self._end]

    def type(self) -> None:
        """Some characters more; now and then, another line further up."""
        self._end += self.random.randint(10, 60)
        if self.random.random() < CHANGED:
            lines = self._text.split("\n")
            lines[self.random.randrange(self._text.count("\n", 0, self._end) + 1)] += "  # changed"
            self._text = "\n".join(lines)
        self.prompt = self._text[: self._end]


def editors(count: int, run: str, least: int) -> list[Editor]:
    """Editors whose files begin with the name of a run: no run finds what another has left."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = (file for file in sorted(folder.rglob("*.py")) if file.stat().st_size > 6000)
    found: list[Editor] = []
    for file in files:
        text = f"# {run}\n" + LICENCE * (len(found) % 2) + file.read_text("utf-8", "replace")
        found.append(Editor(f"{run}-{len(found)}", text, least))
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


def measure(replicas: Replicas, chosen: str, options: argparse.Namespace) -> dict[str, Any]:
    """All editors, as often as they ask, in any order."""
    order, everybody = random.Random(0), editors(options.editors, chosen, options.characters)
    before, tokens, cached = replicas.loads(), 0, 0
    with ThreadPoolExecutor(1 if options.url is None else AT_ONCE) as pool:
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
    parser.add_argument("--url", help="of a server on a cluster; without it there is none")
    parser.add_argument("--api-key", default="none", help="of that server")
    parser.add_argument("--replicas", type=int, default=8, help="where there is no server")
    parser.add_argument("--rooms", type=int, nargs="+", default=[25, 50, 200], metavar="EDITORS")
    parser.add_argument("--editors", type=int, default=200)
    parser.add_argument("--requests", type=int, default=12, help="of each editor")
    parser.add_argument(
        "--characters", type=int, default=1500, help="of a file at first, or up to twice as many"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    results: list[dict[str, Any]] = []

    def tell(replicas: Replicas, chosen: str, **more: Any) -> None:
        results.append({**more, **measure(replicas, chosen, options)})
        print(json.dumps(results[-1]), flush=True)

    if options.url is None:
        with tempfile.TemporaryDirectory() as folder:
            write_codegen_tokenizer(Path(folder))
            tokenizer = Tokenizer.from_folder(Path(folder))
        for room in options.rooms:
            for chosen in ROUTINGS:
                tell(Caches(tokenizer, options.replicas, room), chosen, room=room)
    else:
        key = {"Authorization": f"Bearer {options.api_key}"}
        with httpx.Client(base_url=options.url, headers=key, timeout=600) as client:
            for chosen in ROUTINGS[:-1]:
                tell(Server(client), chosen)
    written = {"machine": machine(1), "ray": ray.__version__, "url": options.url}
    written |= {name: getattr(options, name) for name in ("replicas", "editors", "requests")}
    options.out.mkdir(parents=True, exist_ok=True)
    kind = "caches" if options.url is None else "server"
    out = options.out / f"ray_serve-{kind}-{written['machine']['date']}.json"
    out.write_text(json.dumps({**written, "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
