"""What is said where a server does not come up on a cluster."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError

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
