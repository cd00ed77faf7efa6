"""More clients than the server can carry, many of which hang up: nothing that was accepted is lost.

The same for minutes, with a real model, is benchmarks/serve.py's.
"""

from __future__ import annotations

import json
import random
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from running_server import PATIENCE, wait_until
from served import Served, served
from test_operations import measured

from paddlenlp_codegen_task import CodeGenerator

CLIENTS, SECONDS = 24, 4.0  # at a server that takes 4 and has 4 wait


@pytest.fixture
def server(generator: CodeGenerator, home_path: Path, tmp_path: Path) -> Iterator[Served]:
    options = ("--batch-size=4", "--max-waiting=4", "--prefix-cache-bytes=8M")
    with served(home_path, tmp_path / "log", *options) as one:
        yield one


def ask(server: Served, rng: random.Random) -> str:
    """One request; what became of it."""
    body = {
        "prompt": "def f(x):\n" * rng.randint(1, 8),
        "max_tokens": rng.randint(1, 24),
        "ignore_eos": True,
        "stream": rng.random() < 0.7,
        "n": rng.choice([1, 1, 2]),
        "seed": 1,
    }
    content = json.dumps(body).encode()
    hangs_up = rng.random() < 1 / 3
    with socket.create_connection(server.address, PATIENCE) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
        sent = head.encode() + b"Connection: close\r\n\r\n" + content
        if hangs_up and rng.random() < 0.3:
            connection.sendall(sent[: rng.randrange(len(sent))])
            return "hung up"
        connection.sendall(sent)
        limit = rng.randrange(1500) if hangs_up else None
        if limit is not None and limit < 300:
            time.sleep(rng.random() / 10)
            return "hung up"
        answer = b""
        while part := connection.recv(4096):
            answer += part
            if limit is not None and len(answer) > limit:
                return "hung up"
    head, _, text = answer.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1].decode() if head else "nothing"
    if status != "200":
        assert b"retry-after" in head.lower(), answer
        return status
    if body["stream"]:
        whole = b"data: [DONE]" in text and text.count(b'"finish_reason": "length"') == body["n"]
    else:
        usage = json.loads(text)["usage"]
        whole = usage["completion_tokens"] == body["n"] * body["max_tokens"]
    return "200" if whole else f"lost: {answer!r}"


def test_nothing_accepted_is_lost(server: Served):
    until = time.monotonic() + SECONDS

    def client(number: int) -> Counter[str]:
        rng, found = random.Random(number), Counter[str]()
        while time.monotonic() < until:
            found[ask(server, rng)] += 1
        return found

    with ThreadPoolExecutor(CLIENTS) as pool:
        found = sum(pool.map(client, range(CLIENTS)), Counter[str]())
    assert set(found) == {"200", "429", "hung up"}, found
    # Everything is free again, and the server as good as new.
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client_:

        def at_rest() -> bool:
            now = measured(client_.get("/metrics").text)
            return now["num_requests_running"] == now["num_requests_waiting"] == 0

        wait_until(at_rest)
        answer = client_.post("/v1/completions", json={"prompt": ["x"] * 8, "max_tokens": 4})
        assert answer.status_code == 200
    log = server.log.read_text()
    assert "Traceback" not in log
    assert "ERROR" not in log
