"""The server on a cluster of two nodes, as `serve --ray` starts it."""

from __future__ import annotations

import http.client
import json
import re
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from ray_cluster import two_nodes
from running_server import PATIENCE, wait_until

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.distributed.running import NAME

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

    def counted(self, name: str, label: str = "") -> dict[str, float]:
        """A metric of each replica: all that have this label together."""
        found: dict[str, float] = {}
        text = self.client.get("/metrics").text
        for labels, value in re.findall(rf"^paddlenlp_codegen:{name}{{(.*)}} (\S+)$", text, re.M):
            if label in labels:
                [replica] = re.findall('replica="(.*?)"', labels)
                found[replica] = found.get(replica, 0) + float(value)
        return found

    def running(self) -> float:
        return sum(self.counted("num_requests_running").values())


@pytest.fixture(scope="module")
def deployed(home_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """Two replicas of two rows; one request may wait with each of them, and four at the door."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log"
    with ExitStack() as opened:
        cluster = opened.enter_context(two_nodes())
        command = [*SERVE, f"--ray={cluster.address}", "--num-threads=1", f"--port={port}"]
        command += ["--home-path", str(home_path), "--engine=onnxruntime", "--batch-size=2"]
        command += ["--replicas=2", "--max-waiting=4", "--api-key=k", "--max-body-bytes=10000"]
        command += ["--prefix-cache-bytes=64M", "--cors-origin=https://example.com"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=opened.enter_context(log.open("w")), text=True
        )
        try:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], 10 * PATIENCE)
            assert ready, log.read_text()
            line = process.stdout.readline()
            url = f"http://127.0.0.1:{port}"
            assert line == f"serving builtin on {cluster.address} at {url}\n", log.read_text()
            client = httpx.Client(base_url=url, headers=KEY, timeout=5 * PATIENCE)
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
    with deployed.client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as answer:
        next(answer.iter_lines())
    wait_until(lambda: deployed.running() == 0)
    url = deployed.client.base_url
    with closing(http.client.HTTPConnection(url.host, url.port)) as connection:
        connection.request("POST", "/v1/completions", json.dumps(LONG), KEY)
        wait_until(lambda: deployed.running() == 1)
    wait_until(lambda: deployed.running() == 0)
    assert sum(deployed.counted("generation_tokens_total").values()) == before
    gone = deployed.counted("request_success_total", 'finished_reason="abort"')
    assert sum(gone.values()) == 2


def test_an_editor_stays_with_a_replica(deployed: Deployed):
    def asked() -> dict[str, float]:
        return deployed.counted("prefix_cache_queries_total")

    before = asked()
    # Begins like no other prompt here: what ran last stays in place, to the very token.
    code = "@numbers\n" + "".join(f"def number_{n}():\n    return {n}\n\n" for n in range(30))
    found = []
    for length in range(300, 700, 50):
        answer = deployed.post({"prompt": code[:length], "max_tokens": 1}).json()
        found.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert found[0] == 0
    assert min(found[1:]) > 32
    grown = [count - before[replica] for replica, count in asked().items()]
    assert min(grown) == 0 < max(grown)

    # Editors of other files are with both replicas; one whose file is new stays where it says.
    for n in range(20):
        deployed.post({"prompt": f"{n:<100}", "max_tokens": 1})
    assert all(count > before[replica] for replica, count in asked().items())
    before = asked()
    for n in range(6):
        deployed.post({"prompt": f"{n:<100}", "max_tokens": 1}, headers={"x-session-id": "mine"})
    assert sum(count > before[replica] for replica, count in asked().items()) == 1


def test_editors_are_measured(deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = Path(__file__).parents[2] / "benchmarks" / "ray_serve.py"
    monkeypatch.syspath_prepend(str(script.parent))
    url = str(deployed.client.base_url)
    arguments = ["--url", url, "--api-key=k", "--editors=4", "--requests=2", "--characters=500"]
    monkeypatch.setattr(sys, "argv", [str(script), *arguments, "--out", str(tmp_path)])
    runpy.run_path(str(script), run_name="__main__")
    [file] = tmp_path.iterdir()
    found = {one["routing"]: one["hit_rate"] for one in json.loads(file.read_text())["results"]}
    # The second time most of it is there.
    assert found["session"] > 0.3
    assert found["prompt"] > 0.3


def test_refuses_what_it_has_no_room_for(deployed: Deployed):
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(deployed.post, [{**LONG, "max_tokens": 200}] * 24))
    refused = [answer for answer in answers if answer.status_code == 429]
    whole = [answer for answer in answers if answer.status_code == 200]
    assert len(refused) + len(whole) == 24
    assert len(whole) >= 4
    assert refused
    for answer in refused:
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/v1/completions", {"message": "MESSAGE", "type": "invalid_request_error"}),
        ("/generate", "MESSAGE"),
        ("/api/generate", "MESSAGE"),
    ],
)
def test_refuses_at_the_door(deployed: Deployed, path: str, error: Any):
    message = "the body must have 10000 bytes at most"
    answer = deployed.post({"prompt": "a" * 10_000}, path)
    told = answer.json()["error"]
    assert answer.status_code == 413
    assert (told["message"] if isinstance(told, dict) else told) == message
    answer = httpx.post(deployed.client.base_url.join(path), json={}, timeout=PATIENCE)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"


def test_browsers_may_ask(deployed: Deployed):
    origin = {"Origin": "https://example.com"}
    for body in ({"prompt": "a", "max_tokens": 1}, {"prompt": "a" * 10_000}):
        answer = deployed.post(body, headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://example.com"


def test_a_replica_dies(deployed: Deployed):
    session = {"x-session-id": "of a replica that dies"}
    asked = {**LONG, "stream": True}
    with (
        ThreadPoolExecutor(1) as pool,
        deployed.client.stream("POST", "/v1/completions", json=asked, headers=session) as answer,
    ):
        lines = (line for line in answer.iter_lines() if line)
        next(lines)
        plain = pool.submit(deployed.post, LONG, headers=session)
        wait_until(lambda: max(deployed.counted("num_requests_running").values()) == 2)
        running = deployed.counted("num_requests_running")
        name = f"SERVE_REPLICA::{NAME}#Model#{max(running, key=running.__getitem__)}"
        ray.kill(ray.get_actor(name, namespace="serve"))
        *_, failed, end = lines
        assert json.loads(failed.removeprefix("data: "))["error"]["type"] == "server_error"
        assert end == "data: [DONE]"
        # Nothing of the other's answer had been sent.
        assert plain.result().json()["usage"]["completion_tokens"] == 900
    wait_until(lambda: len(deployed.counted("num_requests_running")) == 2)


def test_ends_when_what_runs_has_ended(deployed: Deployed):
    with deployed.client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as answer:
        lines = (line for line in answer.iter_lines() if line)
        next(lines)
        deployed.command.send_signal(signal.SIGTERM)
        *_, last, end = lines
    assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert end == "data: [DONE]"
    assert deployed.command.wait(PATIENCE) == 0
    with pytest.raises(httpx.ConnectError):
        deployed.client.get("/health")
