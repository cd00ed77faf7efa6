"""What is said where a server does not come up on a cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError
from ray.serve.schema import ProxyStatus

from paddlenlp_codegen_task.distributed import running

TRACEBACK = """The deployment failed to start 3 times in a row. Error:
ray::ServeReplica:paddlenlp-codegen:Model.initialize() (pid=1)
  File "loading.py", line 263, in _find
    raise FileNotFoundError("task_path: there is no folder no/model")
FileNotFoundError: task_path: there is no folder no/model

"""


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([TRACEBACK, ""], "task_path: there is no folder no/model"),
        (["RuntimeError: Failed to bind to '0.0.0.0:80'."], "Failed to bind to '0.0.0.0:80'."),
        (["a.b.StoreError: no room: 5 bytes"], "no room: 5 bytes"),
        (["num_threads: too many"], "num_threads: too many"),
        (["", "\n"], "Ray does not say why"),
    ],
)
def test_the_reason_is_one_line(messages: list[str], reason: str):
    assert running._reason(messages) == reason


def test_a_proxy_that_is_replaced_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    left = [ActorDiedError(), ActorDiedError()]

    def start(**_: object) -> None:
        if left:
            raise left.pop()

    monkeypatch.setattr(running.serve, "start", start)
    running._start("127.0.0.1", 1)
    left[:] = [ActorDiedError()] * running.ATTEMPTS
    with pytest.raises(RuntimeError, match="actor died"), running._in_words():
        running._start("127.0.0.1", 1)


@pytest.fixture
def proxies(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Have Serve tell at each look what its proxies are, one letter each; the last for ever."""
    known = {"s": ProxyStatus.STARTING, "h": ProxyStatus.HEALTHY, "u": ProxyStatus.UNHEALTHY}
    known |= {"d": ProxyStatus.DRAINING, "D": ProxyStatus.DRAINED}
    monkeypatch.setattr(running, "LOOK", 0.0)

    def tell(*looks: str) -> list[str]:
        left = list(looks)

        def status() -> SimpleNamespace:
            look = left.pop(0) if len(left) > 1 else left[0]
            return SimpleNamespace(proxies={str(n): known[one] for n, one in enumerate(look)})

        monkeypatch.setattr(running.serve, "status", status)
        return left

    return tell


def test_serving_is_said_when_nodes_listen(proxies: Callable[..., list[str]]):
    left = proxies("", "ss", "us", "s", "sh", "hu", "dD", "hhdD", "s")
    running._wait_until_nodes_listen("127.0.0.1", 1)
    assert left == ["s"]


def test_nodes_that_do_not_listen(
    proxies: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr(running, "LISTENS_WITHIN", 0.0)
    for look in ("", "s", "su", "sd", "D"):
        proxies(look)
        with pytest.raises(RuntimeError, match=r"^--host, --port: no node listens at a:1 after"):
            running._wait_until_nodes_listen("a", 1)
    proxies("shud")
    with caplog.at_level(logging.WARNING):
        running._wait_until_nodes_listen("a", 1)
    assert "2 of 3 nodes do not listen at a:1" in caplog.text
