"""The server on a cluster of two nodes, as `serve --ray` starts it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_server import PATIENCE, wait_until
from two_nodes import two_nodes

from paddlenlp_codegen_task import CodeGenerator

KEY = {"Authorization": "Bearer k"}
LONG = {"prompt": "def f(", "max_tokens": 900, "ignore_eos": True, "temperature": 0}
SERVE = [sys.executable, "-m", "paddlenlp_codegen_task", "serve", "--model=builtin"]


@dataclass
class Deployed:
    """A server on a cluster.

    Attributes:
        client: asks it, with a key.
        cluster: ray's.
        command: that serves.
        log: what it writes to standard error.
    """

    client: httpx.Client
    cluster: Any
    command: subprocess.Popen[str]
    log: Path

    def post(self, body: Any, path: str = "/v1/completions", **options: Any) -> httpx.Response:
        return self.client.post(path, json=body, **options)

    def counted(self, name: str) -> dict[str, float]:
        """A metric of each replica, all its other labels together."""
        found: dict[str, float] = {}
        text = self.client.get("/metrics").text
        for labels, value in re.findall(rf"^paddlenlp_codegen:{name}{{(.*)}} (\S+)$", text, re.M):
            [replica] = re.findall('replica="(.*?)"', labels)
            found[replica] = found.get(replica, 0) + float(value)
        return found

    def running(self) -> float:
        return sum(self.counted("num_requests_running").values())


@pytest.fixture(scope="module")
def deployed(home_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """Two replicas, of two rows each; one request may wait with each of them, and one before."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    with ExitStack() as opened:
        cluster = opened.enter_context(two_nodes())
        command = [*SERVE, f"--ray={cluster.address}", "--replicas=2", f"--port={port}"]
        command += ["--home-path", str(home_path), "--engine=onnxruntime", "--batch-size=2"]
        command += ["--max-waiting=1", "--api-key=k", "--max-body-bytes=10000"]
        command += ["--prefix-cache-bytes=64M", "--cors-origin=https://example.com"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=opened.enter_context(log.open("w")), text=True
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            url = f"http://127.0.0.1:{port}"
            assert line == f"serving builtin on 2 replicas at {url}\n", log.read_text()
            client = httpx.Client(base_url=url, headers=KEY, timeout=PATIENCE)
            yield Deployed(opened.enter_context(client), cluster, process, log)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def test_completes_as_one_machine_does(deployed: Deployed, builtin: CodeGenerator):
    prompt = "def hello_world():"
    [[expected]] = builtin.generate(prompt, decode_strategy="greedy_search", max_length=16)
    asked = {"prompt": prompt, "max_tokens": 16, "temperature": 0, "token_healing": False}
    answer = deployed.post(asked)
    assert answer.json()["choices"][0]["text"].startswith(expected.text)
    assert len(answer.headers.get_list("x-request-id")) == 1
    assert deployed.client.get("/health").json() == {"status": "ok"}
    assert deployed.client.get("/v1/models").json()["data"][0]["id"] == "builtin"
    assert "<html" in deployed.client.get("/").text


def test_streams_in_parts(deployed: Deployed):
    with deployed.client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as answer:
        lines = (line for line in answer.iter_lines() if line)
        assert json.loads(next(lines).removeprefix("data: "))["choices"]
        assert deployed.running() == 1
        *events, end = lines
    assert end == "data: [DONE]"
    assert json.loads(events[-1].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"


def test_a_disconnect_cancels(deployed: Deployed):
    before = sum(deployed.counted("generation_tokens_total").values())
    for stream in (True, False):
        asked = {**LONG, "stream": stream}
        with pytest.raises(httpx.ReadTimeout), deployed.client.stream(
            "POST", "/v1/completions", json=asked, timeout=0.2
        ) as answer:
            answer.read()
            raise httpx.ReadTimeout("all of it came")
    wait_until(lambda: deployed.running() == 0)
    assert sum(deployed.counted("generation_tokens_total").values()) == before
