"""The door of a server on a cluster, before replicas that do what cannot be had of real ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.testclient import TestClient

from paddlenlp_codegen_task.distributed.ingress import ATTEMPTS, create_app
from paddlenlp_codegen_task.serving.settings import Settings

Answer = Callable[[], AsyncIterator[Any]]
STREAMS = {
    "/v1/completions": ("text/event-stream", b'data: {"error": {"message": "%s"', b"[DONE]\n\n"),
    "/generate_stream": ("text/event-stream", b'data: {"error": "%s"', b"\n\n"),
    "/api/generate": ("application/x-ndjson", b'{"error": "%s"', b"\n"),
}
STOPPED = b"the server has stopped before the request was done"


class Handle:
    """A deployment whose replicas answer, one request after the other, as they are told."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[dict[str, Any], bytes]] = []
        self.keys: list[str] = []
        self.cancelled = 0
        self.said: Any = []

    def options(self, *, session_id: str, **_: Any) -> Handle:
        self.keys.append(session_id)
        return self

    @property
    def answer(self) -> Handle:
        return self

    def remote(self, scope: dict[str, Any], body: bytes) -> Any:
        self.asked.append((scope, body))
        handle, answer = self, self._answers.pop(0)()

        class Response:
            def __aiter__(self) -> AsyncIterator[Any]:
                return answer

            def cancel(self) -> None:
                handle.cancelled += 1

        return Response()

    def broadcast(self, _method: str) -> Handle:
        if isinstance(self.said, Exception):
            raise self.said
        return self

    async def results_async(self, **_: Any) -> Any:
        return self.said


def fails(error: BaseException, content_type: str = "") -> Answer:
    """A replica that fails, before it has said anything or after it has begun to."""

    async def answer() -> AsyncIterator[Any]:
        if content_type:
            headers = [(b"content-type", content_type.encode() + b"; charset=utf-8")]
            yield [
                {"type": "http.response.start", "status": 200, "headers": headers},
                {"type": "http.response.body", "body": b"begun\n\n", "more_body": True},
            ]
        raise error

    return answer


async def fine() -> AsyncIterator[Any]:
    """A replica that answers."""
    headers = [(b"content-type", b"text/plain"), (b"x-request-id", b"own")]
    yield [{"type": "http.response.start", "status": 200, "headers": headers}]
    yield [{"type": "http.response.body", "body": b"fine"}]


async def stuck() -> AsyncIterator[Any]:
    """One that does not."""
    await asyncio.Event().wait()
    yield []


@pytest.fixture
def door() -> Callable[..., TestClient]:
    def client(handle: Handle, **settings: Any) -> TestClient:
        return TestClient(create_app(handle, Settings(**settings)))  # type: ignore[arg-type]

    return client


def task_error() -> RayTaskError:
    return RayTaskError("answer", "traceback", ValueError("of a prompt"))


def test_a_replica_that_dies_before_it_answers(door: Callable[..., TestClient]):
    dying = fails(RayActorError())
    handle = Handle(dying, dying, fine)
    answer = door(handle).post("/v1/completions", json={"prompt": "a"})
    assert (answer.status_code, answer.text) == (200, "fine")
    assert "x-request-id" not in answer.headers  # Serve's proxy adds it
    assert len(set(handle.keys)) == 1
    assert handle.asked[0] == handle.asked[2]
    assert handle.cancelled == 3

    handle = Handle(*[dying] * ATTEMPTS, fine)
    answer = door(handle).post("/v1/completions", json={"prompt": "a"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["message"].encode() == STOPPED


@pytest.mark.parametrize("path", STREAMS)
def test_a_replica_that_dies_in_a_stream(door: Callable[..., TestClient], path: str):
    kind, error, end = STREAMS[path]
    handle = Handle(fails(RayActorError(), kind), fine)
    with door(handle).stream("POST", path, json={}) as answer:
        content = answer.read()
    assert content.startswith(b"begun\n\n" + error % STOPPED)
    assert content.endswith(end)
    assert len(handle.asked) == 1


def test_a_replica_that_dies_in_an_answer_that_is_none(door: Callable[..., TestClient]):
    handle = Handle(fails(RayActorError(), "application/json"))
    with pytest.raises(Exception, match=STOPPED.decode()):  # which breaks the connection
        door(handle).post("/v1/completions", json={})


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (BackPressureError(num_queued_requests=1, max_queued_requests=1), 429, "try again later"),
        (DeploymentUnavailableError(None), 503, "takes no requests"),  # type: ignore[arg-type]
        (task_error(), 500, "the server has failed"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/generate", "/api/generate"])
def test_what_is_wrong_with_all_replicas(
    door: Callable[..., TestClient], path: str, error: Exception, status: int, message: str
):
    answer = door(Handle(fails(error))).post(path, json={})
    told = answer.json()["error"]
    assert answer.status_code == status
    assert ("retry-after" in answer.headers) == (status in (429, 503))
    assert (told["message"] if isinstance(told, dict) else told).endswith(message)


def test_waiting_for_a_replica_has_an_end(
    door: Callable[..., TestClient], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("paddlenlp_codegen_task.distributed.ingress.GRACE", 0.01)
    handle = Handle(stuck)
    answer = door(handle, request_timeout=0.01).post("/v1/completions", json={})
    assert answer.status_code == 504
    assert handle.cancelled == 1


def test_who_has_no_key_reaches_no_replica(door: Callable[..., TestClient]):
    handle = Handle(fine)
    client = door(handle, api_keys=("k",))
    for path in ("/v1/completions", "/metrics", "/generate"):
        assert client.get(path).status_code == 401
    assert not handle.asked
    assert client.get("/version").text == "fine"


def test_health_is_that_of_any_replica(door: Callable[..., TestClient]):
    handle = Handle()
    for said, status in (
        ([("a", "ok"), ("b", "failed")], 200),
        ([("a", "failed"), RayActorError()], 503),
        ([], 503),
        (DeploymentUnavailableError(None), 503),  # type: ignore[arg-type]
    ):
        handle.said = said
        answer = door(handle).get("/health")
        assert answer.status_code == status
        assert answer.json()["status"] == ("ok" if status == 200 else "failed")


def test_metrics_are_of_each_replica(door: Callable[..., TestClient]):
    handle = Handle()
    for replica in ("a", "b"):
        registry = CollectorRegistry()
        Counter("asked", "How often.", ["kind"], registry=registry).labels("x").inc(3)
        handle.said.append((replica, list(registry.collect())))
    lines = door(handle).get("/metrics").text.splitlines()
    assert lines.count("# TYPE asked_total counter") == 1
    assert {'asked_total{kind="x",replica="a"} 3.0', 'asked_total{kind="x",replica="b"} 3.0'} <= {
        *lines
    }
