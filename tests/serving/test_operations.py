"""Keys, limits, deadlines, metrics, the log, and how a server ends."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from running_server import PATIENCE, Running, wait_until
from served import Served, begin, served

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.serving import keys
from paddlenlp_codegen_task.serving.app import create_app
from paddlenlp_codegen_task.serving.settings import Settings

Serve = Callable[..., Running]

# Making one, which httpx does for each call otherwise, takes longer than a request.
HTTPX: dict[str, Any] = {"verify": ssl.create_default_context(), "timeout": PATIENCE}

LONG = {"prompt": "def f(", "max_tokens": 900, "ignore_eos": True, "temperature": 0}
SHORT = {"prompt": "def f(", "max_tokens": 4, "temperature": 0}
PREFIX = "paddlenlp_codegen:"


@contextmanager
def opened(url: str, body: dict[str, Any], **headers: str) -> Iterator[socket.socket]:
    """A request that has been sent; what answers it is read from the socket."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    content = json.dumps(body).encode()
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection((host, int(port)), PATIENCE) as connection:
        connection.sendall(
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
            f"Content-Type: application/json\r\n{head}\r\n".encode()
            + content
        )
        yield connection


def streaming(connection: socket.socket) -> bytes:
    """Wait for the first event of a stream."""
    found = b""
    while b"data:" not in found:
        part = connection.recv(4096)
        assert part, found
        found += part
    return found


def rest(connection: socket.socket) -> bytes:
    """What comes until a stream's end, or the connection's."""
    found = b""
    while b"[DONE]" not in found and (part := connection.recv(65536)):
        found += part
    return found


def measured(text: str) -> dict[str, float]:
    """Metrics by name, and by name and the last label where there is one beside the model."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = [v for n, v in sample.labels.items() if n not in ("model_name", "le")]
            found[":".join([sample.name.removeprefix(PREFIX), *labels])] = sample.value
    return found


# Keys.


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer first"}, 200),
        ({"authorization": "bearer   second"}, 200),
        ({"api-key": "first"}, 200),
        ({"Authorization": "Bearer wrong", "api-key": "second"}, 200),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer firs"}, 401),
        ({"Authorization": "Bearer firstt"}, 401),
        ({"Authorization": "Bearer FIRST"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Basic first"}, 401),
        ({"Authorization": "first"}, 401),
        ({"api-key": ""}, 401),
        ({"api-key": "first,second"}, 401),
        ({"x-api-key": "first"}, 401),
        ({"Authorization": "Bearer " + "x" * 4000}, 401),
        ({"Cookie": "api-key=first"}, 401),
    ],
    ids=str,
)
def test_keys(serve: Serve, headers: dict[str, str], status: int):
    server = serve(Settings(api_keys=("first", "second")))
    answer = server.post(SHORT, headers=headers)
    assert answer.status_code == status
    if status == 401:
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["code"] == "invalid_api_key"
        assert "Bearer KEY" in error["message"]
        assert answer.headers["www-authenticate"] == "Bearer"


def test_which_routes_need_a_key(serve: Serve):
    server = serve(Settings(api_keys=("first",)))
    open_ones = {"/", "/health", "/version"}
    paths = {route.path for route in server.app.routes} | {"/none", "/health/", "//health"}
    assert open_ones < paths
    for path in paths:
        path = re.sub(r"{\w+(:path)?}", "x", path)
        statuses = {
            httpx.get(server.url + path, **HTTPX).status_code,
            server.post({}, path).status_code,
        }
        if path in open_ones:
            assert 200 in statuses, path
        else:
            assert statuses == {401}, path


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch):
    """All of them, by their hashes, whichever it is."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    known = keys.Keys(["a", "bb", "ccc"])
    for key, allowed in ((b"a", True), (b"ccc", True), (b"x" * 999, False)):
        compared.clear()
        assert known.allow("POST", "/v1/completions", [(b"api-key", key)]) is allowed
        assert len(compared) == 3
        assert {len(one) for pair in compared for one in pair} == {32}
    assert b"ccc" not in repr(vars(known)).encode()


def test_where_keys_come_from(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text("# team\n\n  one \r\ntwo\n", encoding="utf-8")
    found = keys.collect(["zero", "one"], file, "three, four,")
    assert found == ("zero", "one", "two", "three", "four")
    assert keys.collect((), None, "") == ()


# Browsers.


def test_no_page_may_ask_unless_told(serve: Serve):
    asking = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    server = serve(Settings(api_keys=("first",)))
    answer = httpx.options(server.url + "/v1/completions", headers=asking, **HTTPX)
    assert "access-control-allow-origin" not in answer.headers
    server = serve(Settings(api_keys=("first",), cors_origins=("https://a.example",)))
    answer = httpx.options(
        server.url + "/v1/completions", headers=asking, **HTTPX
    )  # browsers send no key
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    refused = server.post(SHORT, headers={"Origin": "https://a.example"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://a.example"  # so it is read
    other = server.post(SHORT, headers={"Origin": "https://b.example", "api-key": "first"})
    assert "access-control-allow-origin" not in other.headers


# Limits.


def test_more_than_may_wait_is_refused_at_once(serve: Serve, new_generator: Any):
    server = serve(Settings(max_waiting=1), new_generator(batch_size=1))
    with opened(server.url, {**LONG, "stream": True}) as one, opened(server.url, LONG):
        streaming(one)
        wait_until(lambda: server.app.state.engine.rows == 2)
        for body in (SHORT, {**SHORT, "stream": True}):
            refused = server.post(body)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    wait_until(lambda: server.app.state.engine.rows == 0)
    assert server.post(SHORT).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ["x"] * 5}, "prompt"),
        ({"prompt": "x", "n": 3}, "n"),
        ({"prompt": "x", "best_of": 3}, "best_of"),
        ({"prompt": ["x"] * 4, "n": 2}, "prompt"),  # eight, which could never all wait
    ],
)
def test_what_one_request_may_ask_for(
    serve: Serve, new_generator: Any, body: dict[str, Any], param: str
):
    server = serve(Settings(max_prompts=4, max_n=2, max_waiting=4), new_generator(batch_size=1))
    refused = server.post({**body, "max_tokens": 1})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == param


def test_a_body_too_long(serve: Serve):
    server = serve(Settings(max_body_bytes=1000))
    assert server.post({"prompt": "x" * 2000}).status_code == 413
    assert server.post(SHORT).status_code == 200


def test_a_request_that_takes_too_long(serve: Serve, new_generator: Any):
    server = serve(Settings(request_timeout=1.0), new_generator(batch_size=1))
    server.generator.add_step_hook(lambda _: time.sleep(0.01))  # the whole takes ten times as long
    answer = server.post(LONG)
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "timeout"
    stream = server.post({**LONG, "stream": True})
    assert stream.status_code == 200
    events = [line[6:] for line in stream.text.splitlines() if line.startswith("data: ")]
    assert "error" not in json.loads(events[0])
    errors = [json.loads(one)["error"] for one in events if one.startswith('{"error')]
    assert [error["code"] for error in errors] == ["timeout"]
    with opened(server.url, {**LONG, "stream": True}):  # of who waits, too
        assert server.post(LONG).status_code == 504
    wait_until(lambda: server.app.state.engine.rows == 0)
    found = measured(server.get("/metrics").text)
    assert found["request_success_total:timeout"] >= 3


def test_a_client_that_reads_nothing_is_cut_off(generator: CodeGenerator):
    """As uvicorn has it: what is sent to such a client never returns."""
    app = create_app(generator, Settings(unread_seconds=0.2))
    body = [{"type": "http.request", "body": json.dumps({**LONG, "stream": True}).encode()}]

    async def receive() -> dict[str, Any]:
        if not body:
            await asyncio.Event().wait()
        return body.pop()

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            assert app.state.engine.rows == 1
            await asyncio.Event().wait()

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    scope |= {"query_string": b"", "asgi": {"version": "3.0", "spec_version": "2.3"}}
    asyncio.run(asyncio.wait_for(app(scope, receive, send), PATIENCE))
    assert app.state.engine.rows == 0
    assert app.state.traffic.running == 0


def test_a_body_that_does_not_come(serve: Serve):
    server = serve(Settings(unread_seconds=0.3))
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), PATIENCE) as connection:
        connection.sendall(
            b'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"pro'
        )
        answer = b""
        while part := connection.recv(4096):
            answer += part
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the rest of the body did not come" in answer


# What it tells.


def test_metrics(serve: Serve, new_generator: Any):
    generator = new_generator(batch_size=2, prefix_cache_bytes=16 << 20)
    server = serve(Settings(truncations=("python",)), generator)
    prompt = "def add(a, b):\n" * 20
    first = {"prompt": prompt, "max_tokens": 6, "temperature": 0, "ignore_eos": True}
    usage = server.post(first).json()["usage"]
    server.post(first)
    cut = server.post(
        {"prompt": "def f():\n    return 1\n", "max_tokens": 200, "truncation": "python", "n": 2}
    ).json()
    server.post({"prompt": "x", "max_tokens": 40, "stop": ["e", "a", "\n", " "]})
    with opened(server.url, {**LONG, "stream": True}) as connection:
        streaming(connection)
        running = measured(server.get("/metrics").text)
    wait_until(lambda: server.app.state.engine.rows == 0)
    server.post({"prompt": ["x"], "n": 999})
    answer = server.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    found = measured(answer.text)
    assert running["num_requests_running"] == 1
    assert running["kv_cache_usage_perc"] > 0
    assert found["num_requests_running"] == found["num_requests_waiting"] == 0
    assert found["kv_cache_usage_perc"] == 0
    assert found["prompt_tokens_total"] > 2 * usage["prompt_tokens"]
    assert found["generation_tokens_total"] >= 12 + cut["usage"]["completion_tokens"]
    assert found["prefix_cache_queries_total"] >= 2 * usage["prompt_tokens"]
    assert found["prefix_cache_hits_total"] >= usage["prompt_tokens"] - 32
    assert found["prefix_cache_bytes"] > 0
    assert found["request_success_total:length"] >= 2
    assert found["request_success_total:abort"] == 1
    stops = found.get("truncations_total:python", 0) + found.get("truncations_total:none", 0)
    assert stops <= found["request_success_total:stop"]  # a text may end by itself
    assert found["truncations_total:none"] == 1  # by a stop string
    assert found["truncation_saved_tokens_total"] > 0
    assert found["http_requests_total:/v1/completions:200"] == 4
    assert found["http_requests_total:/v1/completions:400"] == 1
    for name, count in {
        "time_to_first_token_seconds": 4,
        "e2e_request_latency_seconds": 4,
        "request_queue_time_seconds": 4,
        "request_prefill_time_seconds": 5,  # of each sequence
        "time_per_output_token_seconds": 2,
    }.items():
        assert found[f"{name}_count"] >= min(count, 2), name
        assert 0 <= found[f"{name}_sum"] < 60 * count, name
    first_token = found["time_to_first_token_seconds_sum"]
    assert found["request_queue_time_seconds_sum"] <= first_token
    assert first_token <= found["e2e_request_latency_seconds_sum"]
    assert {"spec_decode_num_draft_tokens_total", "spec_decode_num_accepted_tokens_total"} < set(
        found
    )


def test_metrics_in_openmetrics(server: Running):
    asked = {"Accept": "application/openmetrics-text; version=1.0.0"}
    answer = server.get("/metrics", headers=asked)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_labels_are_bounded(serve: Serve):
    """Nothing that a client writes becomes a label, which would stay for ever."""
    server = serve()
    for path in ("/none", "/etc/passwd", "/v1/engines/secret-engine/completions", "/models/secret"):
        server.post({**SHORT, "model": "secret", "user": "secret", "truncation": "secret"}, path)
    text = server.get("/metrics").text
    assert "secret" not in text
    assert "passwd" not in text
    handlers = set(re.findall(r'handler="([^"]*)"', text))
    assert handlers <= {route.path for route in server.app.routes} | {"none"}


def test_each_server_counts_for_itself(serve: Serve):
    one, other = serve(), serve()
    one.post(SHORT)
    assert measured(one.get("/metrics").text)["generation_tokens_total"] > 0
    assert measured(other.get("/metrics").text)["generation_tokens_total"] == 0


def test_the_log_has_a_line_a_request_and_no_prompt(serve: Serve, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "paddlenlp_codegen_task")
    server = serve(Settings(api_keys=("the-key",)))
    known = {"api-key": "the-key"}
    secret = "xyzzy_prompt"
    bodies: list[tuple[Any, dict[str, str], int]] = [
        ({"prompt": secret, "max_tokens": 2}, {**known, "X-Request-Id": "mine-1"}, 200),
        ({"prompt": secret, "max_tokens": 2, "stream": True}, known, 200),
        ({"prompt": secret, "max_tokens": -1}, known, 400),
        ({"prompt": {secret: secret}}, known, 400),
        ({"prompt": secret, "truncation": secret}, known, 400),
        ({"prompt": secret}, {"api-key": secret}, 401),
    ]
    ids = []
    for body, headers, status in bodies:
        answer = server.post(body, headers=headers)
        assert answer.status_code == status
        ids.append(answer.headers["x-request-id"])
    server.post({}, f"/v1/x%0aINFO forged?prompt={secret}", headers=known)
    evil = server.get("/version", headers={"X-Request-Id": "a b"}).headers["x-request-id"]
    assert evil.startswith("req-")
    wait_until(lambda: sum("POST" in line for line in caplog.messages) == len(bodies) + 1)
    lines = [line for line in caplog.messages if line.startswith("POST ")]
    pattern = r"POST /\S* (\d+) \d+\.\d ms prompt=\d+ cached=\d+ generated=\d+ client=\S+ id=(\S+)"
    found = [re.fullmatch(pattern, line) for line in lines]
    assert all(found), lines
    assert [(one[2], int(one[1])) for one in found[:-1] if one] == [
        (one, status) for one, (_, _, status) in zip(ids, bodies, strict=True)
    ]
    assert ids[0] == "mine-1"
    assert "generated=2" in lines[0]
    assert "prompt=" in lines[0]
    assert "prompt=0" not in lines[0]
    assert len(set(ids)) == len(ids)
    assert not any(secret in line or "the-key" in line for line in caplog.messages)


def test_an_unforeseen_error_is_one_line_and_500(
    serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    server = serve()

    async def fail(*_: object) -> None:
        raise ZeroDivisionError("xyzzy_prompt")

    monkeypatch.setattr(server.app.state.completions, "job", fail)
    caplog.set_level(logging.INFO)
    answer = server.post(SHORT)
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "the server has failed: ZeroDivisionError"
    wait_until(lambda: any(line.startswith("POST ") for line in caplog.messages))
    errors = [one for one in caplog.records if one.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert "xyzzy_prompt" not in caplog.text
    assert "Traceback" not in caplog.text


def test_health_of_an_engine_that_is_dead(serve: Serve, home_path: Path):
    with CodeGenerator.from_pretrained(
        "builtin", home_path=home_path, device="cpu", num_threads=1
    ) as generator:
        server = serve(None, generator)
        assert server.get("/health").status_code == 200
        generator.close()
        health = server.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "failed"})
        refused = server.post(SHORT)
        assert refused.status_code == 503
        assert "has failed" in refused.json()["error"]["message"]
        assert server.get("/metrics").status_code == 200


# How it ends; in a process of its own.


@pytest.fixture(scope="module")
def exported(home_path: Path, generator: CodeGenerator) -> Path:
    """A home with an export, so that a server is soon there."""
    return home_path


def test_sigterm_lets_what_runs_end(exported: Path, tmp_path: Path):
    with served(exported, tmp_path / "log", "--batch-size=2") as server:
        bodies = [{**LONG, "max_tokens": 200, "stream": n < 2} for n in range(4)]
        with ThreadPoolExecutor() as pool, opened(server.url, bodies[0]) as first:
            head = streaming(first)
            running = [
                pool.submit(httpx.post, server.url + "/v1/completions", json=body, **HTTPX)
                for body in bodies[1:]
            ]
            wait_until(lambda: waiting(server) == 4)
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: httpx.get(server.url + "/health", **HTTPX).status_code == 503)
            refused = httpx.post(server.url + "/v1/completions", json=SHORT, **HTTPX)
            assert refused.status_code == 503
            assert refused.headers["retry-after"]
            assert "is stopping" in refused.json()["error"]["message"]
            text = head + rest(first)
            answers = [one.result() for one in running]
        assert b'"finish_reason": "length"' in text
        assert text.rstrip(b"\r\n0").endswith(b"data: [DONE]")
        assert [one.status_code for one in answers] == [200] * 3
        assert answers[0].text.endswith("data: [DONE]\n\n")
        assert [one.json()["usage"]["completion_tokens"] for one in answers[1:]] == [200, 200]
        assert server.process.wait(PATIENCE) == 0
        assert "Traceback" not in server.log.read_text()


def waiting(server: Served) -> float:
    found = measured(httpx.get(server.url + "/metrics", **HTTPX).text)
    return found["num_requests_running"] + found["num_requests_waiting"]


def test_what_does_not_end_in_time_is_told(exported: Path, tmp_path: Path):
    options = ("--drain-seconds=0.2", "--batch-size=1")
    with served(exported, tmp_path / "log", *options) as server:
        body = {**LONG, "max_tokens": 1000}
        with opened(server.url, {**body, "stream": True}) as one, opened(server.url, body) as other:
            found = streaming(one)
            wait_until(lambda: waiting(server) == 2)
            server.process.send_signal(signal.SIGTERM)
            found += rest(one)
            answer = other.recv(65536)
        assert b"the server has stopped before the request was done" in found
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert server.process.wait(PATIENCE) == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(exported: Path, tmp_path: Path, second: signal.Signals):
    body = {**LONG, "max_tokens": 1000, "n": 8, "stream": True}
    with (
        served(exported, tmp_path / "log", "--drain-seconds=600") as server,
        opened(server.url, body) as one,
    ):
        streaming(one)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(server.url + "/health", **HTTPX).status_code == 503)
        server.process.send_signal(second)
        assert server.process.wait(PATIENCE) == -second


def test_ctrl_c_ends_it_as_sigterm_does(exported: Path, tmp_path: Path):
    with served(exported, tmp_path / "log") as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(PATIENCE) == 0


def test_sigterm_while_loading(tmp_path: Path):
    """Nothing is left behind; the next start makes the export."""
    home = tmp_path / "home"
    process = begin(home, tmp_path / "log")
    with process:
        wait_until(lambda: home.is_dir() or process.poll() is not None)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    with served(home, tmp_path / "log") as server:
        assert httpx.post(server.url + "/v1/completions", json=SHORT, **HTTPX).status_code == 200


@pytest.mark.parametrize("moment", [0.0, 0.05, 0.2])
def test_sigkill_leaves_no_broken_export(tmp_path: Path, moment: float):
    home = tmp_path / "home"
    process = begin(home, tmp_path / "log")
    with process:
        wait_until(lambda: home.is_dir() or process.poll() is not None)
        time.sleep(moment)
        process.kill()
    with served(home, tmp_path / "log") as server:
        answer = httpx.post(server.url + "/v1/completions", json=SHORT, **HTTPX)
        assert answer.status_code == 200
        server.process.kill()
    before = sorted(path for path in home.rglob("*") if path.is_file())
    with served(home, tmp_path / "log") as server:
        again = httpx.post(server.url + "/v1/completions", json=SHORT, **HTTPX)
        assert again.json()["choices"] == answer.json()["choices"]
    assert sorted(path for path in home.rglob("*") if path.is_file()) == before


def test_keys_from_the_environment(exported: Path, tmp_path: Path):
    options = ("--host=0.0.0.0",)
    with served(exported, tmp_path / "log", *options, PADDLENLP_CODEGEN_API_KEY="k1,k2") as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1") + "/v1/completions"
        statuses = [
            httpx.post(url, json=SHORT, headers={"api-key": key}, **HTTPX).status_code
            for key in ("k1", "k2", "k1,k2")
        ]
        assert statuses == [200, 200, 401]
        assert "open to" not in server.log.read_text()
        assert "k1" not in server.log.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--host=0.0.0.0", "--no-api-key"), "open to everybody who reaches it"),
        ((), "open to this machine alone, without a key"),
    ],
)
def test_who_may_ask_is_said(exported: Path, tmp_path: Path, options: Any, message: str):
    with served(exported, tmp_path / "log", *options) as server:
        assert message in server.log.read_text()


# What a client can not do.

WATCHED = r"""
import re, sys
from paddlenlp_codegen_task import cli
from paddlenlp_codegen_task.serving import gate

seen, watching = [], False
compile_pattern = re._compiler.compile

def compiled(*args, **options):
    if watching:
        seen.append(("regex", str(args[0])[:80]))
    return compile_pattern(*args, **options)

def hook(event, args):
    if watching and event in ("open", "import", "exec", "compile", "subprocess.Popen",
                              "os.listdir", "os.scandir", "os.system", "socket.connect"):
        seen.append((event, str(args[0])[:80]))

re._compiler.compile = compiled
sys.addaudithook(hook)
answer = gate.Gate.__call__

async def call(self, scope, receive, send):
    global watching
    path = scope.get("path")
    if path == "/watch":
        watching = True
    if path == "/unwatch":
        watching = False
        print(repr(seen), flush=True)
    await answer(self, scope, receive, send)

gate.Gate.__call__ = call
cli.app(sys.argv[1:])
"""


def test_no_client_has_it_compile_read_or_import(exported: Path, tmp_path: Path):
    """By audit events, of all kinds of requests after each has come once."""
    command = [sys.executable, "-c", WATCHED, "serve", "--model=builtin", "--port=0"]
    command += ["--home-path", str(exported), "--engine=onnxruntime", "--num-threads=1"]
    command += ["--log-level=error"]
    evil = ["(a+)+$", "/etc/passwd", "../../etc/passwd", "os", "__import__('os')", "file:///etc"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]

            client = httpx.Client(base_url=url, timeout=PATIENCE)

            def ask(value: str) -> None:
                for body in (
                    {"prompt": value, "max_tokens": 2, "stop": [value, ".*" + value]},
                    {"prompt": value, "max_tokens": 2, "truncation": value},
                    {"prompt": value, "max_tokens": 2, "truncation": [value]},
                    {"prompt": value, "max_tokens": 2, "truncation": "java", "stream": True},
                    {"prompt": value, "max_tokens": 2, "model": value, "user": value},
                    {"prompt": value, "max_tokens": 2, "suffix": value},
                    {"prompt": value, "max_tokens": 2, "n": 2, "logprobs": 2, "seed": 1},
                    {"prompt": value, "max_tokens": 2, "use_beam_search": True, "best_of": 2},
                    {"prompt": value, "logit_bias": {value: 1}},
                    {value: value},
                ):
                    client.post("/v1/completions", json=body)
                for path in ("/generate", "/generate_stream", "/api/generate", "/tokenize"):
                    few = {"parameters": {"max_new_tokens": 2}, "options": {"num_predict": 2}}
                    said = {"inputs": value, "prompt": value, "model": value, "stream": False}
                    client.post(path, json={**few, **said})
                for path in (value, "static/" + value, "page/" + value, "models/" + value):
                    client.get(f"{url}/{path}")
                    client.post(f"{url}/{path}", content=value)

            ask("x = 1")
            ask("(b+)+$")
            client.get("/watch")
            for value in evil:
                ask(value)
            client.get("/unwatch")
            assert process.stdout.readline() == "[]\n"
        finally:
            process.kill()


def test_threads_do_not_pile_up(server: Running):
    for _ in range(3):
        server.post({**SHORT, "prompt": "x " * 5000, "truncate_prompt_tokens": 10})
    before = threading.active_count()
    for _ in range(40):
        server.post({**SHORT, "prompt": "x " * 5000, "truncate_prompt_tokens": 10})
    assert threading.active_count() <= before + 4
