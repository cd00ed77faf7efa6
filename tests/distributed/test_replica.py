"""A replica by itself: the application of one machine, called as a deployment is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from running_server import wait_until
from starlette.testclient import TestClient

from paddlenlp_codegen_task.distributed import application, deployment
from paddlenlp_codegen_task.distributed.cluster import Pool
from paddlenlp_codegen_task.distributed.deployment import Model
from paddlenlp_codegen_task.runtime import device
from paddlenlp_codegen_task.serving.app import create_app
from paddlenlp_codegen_task.serving.settings import Settings

SETTINGS = Settings(token_healing=False)


@pytest.fixture
def replica(home_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="mine"))
    monkeypatch.setattr(deployment.serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(device, "free_bytes", lambda _: 1 << 30)
    loading = {"model": "builtin", "home_path": str(home_path), "batch_size": 2}
    found = Model(loading, Pool(4, 4, 1, 0, on_a_node=4), SETTINGS, "warning")
    with found._generator:
        yield found


def scope_of(path: str, method: str = "POST") -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json")],
        "client": ("192.0.2.1", 5),
        "server": ("192.0.2.2", 80),
    }


def test_answers_as_the_application_does(replica: Model):
    asked = {"prompt": "def hello_world():", "max_tokens": 12, "temperature": 0}
    client = TestClient(create_app(replica._generator, SETTINGS))

    async def run() -> list[list[Any]]:
        body = json.dumps(asked).encode()
        return [part async for part in replica.answer(scope_of("/v1/completions"), body)]

    start, *bodies = [message for part in asyncio.run(run()) for message in part]
    assert start["status"] == 200
    text = b"".join(message["body"] for message in bodies)
    expected = client.post("/v1/completions", json=asked).json()
    assert json.loads(text)["choices"] == expected["choices"]


def test_leaving_is_hanging_up(replica: Model):
    asked = {"prompt": "a", "max_tokens": 900, "ignore_eos": True, "stream": True}

    async def run() -> None:
        parts = replica.answer(scope_of("/v1/completions"), json.dumps(asked).encode())
        await anext(parts)
        assert replica._engine.rows == 1
        await parts.aclose()
        assert replica._engine.rows == 0
        name, metrics = await replica.metrics()
        assert name == "mine"
        assert any(one.name == "paddlenlp_codegen:request_success" for one in metrics)

    asyncio.run(run())


def test_shares_its_node(replica: Model):
    # Half of what is free, and a quarter of it, for four replicas.
    assert replica._generator._model.runtime.cache.max_bytes == (1 << 29) // 4
    found: list[Any] = []
    replica._generator.engine.run(lambda scheduler: found.append(scheduler.slots.prefix_cache))
    wait_until(lambda: bool(found))
    assert found[0].max_bytes == (1 << 28) // 4


def test_is_replaced_where_its_engine_has_failed(replica: Model):
    replica.check_health()
    assert asyncio.run(replica.health()) == ("mine", "ok")
    replica._generator.close()
    assert asyncio.run(replica.health()) == ("mine", "failed")
    with pytest.raises(RuntimeError, match="the engine has failed"):
        replica.check_health()


def test_there_are_more_where_requests_wait():
    assert application._number(Pool(3, 3, 1, 0, 1), 32) == {"num_replicas": 3}
    scaling = application._number(Pool(2, 8, 1, 0, 1), 32)["autoscaling_config"]
    assert (scaling.min_replicas, scaling.max_replicas) == (2, 8)
    assert scaling.target_ongoing_requests == 32
