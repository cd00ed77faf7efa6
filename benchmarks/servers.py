"""The servers that serve.py compares, each in a process of its own, and what they are asked."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from compare import SYSTEMS, System, environment, make_prompts, prepare
from sse_client import Answer, Connection, closed_loop

from paddlenlp_codegen_task.model.tokenizer import Tokenizer

HERE = Path(__file__).resolve().parent
T = TypeVar("T")


@dataclass(frozen=True)
class Sizes:
    """How much is done; those of the figures that are wanted."""

    clients: int = 32
    prompt_tokens: int = 200
    new_tokens: int = 32
    requests: int = 64  # of a round
    rounds: int = 3
    one_by_one: int = 8  # requests of a round of the server that answers one at a time
    one_client: int = 12  # requests of a round of one client
    file_tokens: int = 1000
    keystrokes: int = 200
    without_every: int = 5  # keystrokes of which one is also tried without the prefix cache
    sweep: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    minutes: float = 5.0
    cache_bytes: int = 1 << 30


SMALL = Sizes(
    clients=4,
    prompt_tokens=20,
    new_tokens=4,
    requests=8,
    rounds=1,
    one_by_one=2,
    one_client=2,
    file_tokens=200,
    keystrokes=8,
    without_every=2,
    sweep=(1, 4),
    minutes=0.05,
    cache_bytes=1 << 26,
)


class Server:
    """A server's process. It runs only while it is asked.

    Attributes:
        served_seconds: that clients have worked with any of them.
        client_seconds: of a core that this process has taken for it.
    """

    served_seconds: ClassVar[float] = 0.0
    client_seconds: ClassVar[float] = 0.0

    def __init__(self, peer: str, python: Path, arguments: list[str], tokens: int, threads: int):
        """Start one, and wait until it answers."""
        self.peer = peer
        self.new_tokens = tokens
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as this)
        self.process = subprocess.Popen(
            [str(python), str(HERE / "peers" / f"{peer}.py"), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**environment(threads), "MAX_LENGTH": str(tokens)},
            text=True,
        )
        self._port = int(self._answer()["port"])
        self.process.send_signal(signal.SIGSTOP)

    def ask(self, task: str, **values: Any) -> Any:
        """Have it do something beside HTTP; serve_ours.Tasks has what."""
        assert self.process.stdin is not None
        with self.running():
            print(json.dumps({"task": task, **values}), file=self.process.stdin, flush=True)
            return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace")[-2000:]
            raise SystemExit(f"{self.peer} ended:\n{said}")
        return json.loads(line)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self.process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGSTOP)

    def connect(self) -> Connection:
        """A client, which asks for the same of every server."""
        if self.peer == "serve_paddlenlp":  # whose number of tokens is fixed
            return Connection(self._port, "/v1/engines/codegen/completions", {"stream": True})
        body = {
            "max_tokens": self.new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "truncation": None,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return Connection(self._port, "/v1/completions", body)

    def resident(self) -> int:
        """Bytes of memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
        return 1024 * int(line.split()[1])

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()

    def serve(self, clients: Coroutine[Any, Any, T]) -> T:
        """Run while clients do their work, and note what time that takes of this process."""
        with self.running():
            start, used = time.monotonic(), time.process_time()
            found = asyncio.run(clients)
            Server.client_seconds += time.process_time() - used
            Server.served_seconds += time.monotonic() - start
        return found

    def load(
        self, prompts: list[str], clients: int, enough: int = 0, spread: float = 0.0
    ) -> list[Answer]:
        """Have prompts completed by clients in a closed loop; every answer is whole."""
        answers = self.serve(closed_loop(self.connect, prompts, clients, enough, spread))
        for one in answers:
            if not whole(one, self.new_tokens):
                raise SystemExit(f"{self.peer} did not answer: {one}")
        return answers


def whole(answer: Answer, new_tokens: int) -> bool:
    """Whether an answer has all that was asked for."""
    # PaddleNLP's server does not count.
    tokens = (answer.usage or {}).get("completion_tokens") or new_tokens
    return answer.status == 200 and answer.ended and not answer.problem and tokens == new_tokens


def rate(answers: list[Answer], new_tokens: int) -> float:
    """Tokens a second of clients in a closed loop, from the first request to the last answer."""
    seconds = max(one.last for one in answers) - min(one.sent for one in answers)
    return len(answers) * new_tokens / seconds


class Bench:
    """The machine, the servers and the prompts that all parts use."""

    def __init__(self, options: argparse.Namespace, sizes: Sizes) -> None:
        self.sizes = sizes
        self.threads: int = options.threads
        self.precision: str = options.precision
        self.root = options.environments.resolve()
        self._work = options.work.resolve()
        self._checkpoint = options.checkpoint.resolve()
        self._tokenizer = Tokenizer.from_folder(self._checkpoint)
        self._servers: dict[tuple[str, ...], Server] = {}
        self._prompts: list[str] = []
        self._used = 0

    def prompts(self, count: int) -> list[str]:
        """So many that nobody was asked yet."""
        self._used += count
        if self._used > len(self._prompts):
            wanted = max(2 * len(self._prompts), self._used, 8 * self.sizes.requests)
            self._prompts = make_prompts(self._tokenizer, wanted, self.sizes.prompt_tokens)
        return self._prompts[self._used - count : self._used]

    def file(self) -> tuple[str, str]:
        """A file of file_tokens tokens, and what is typed at its end."""
        ids = self._tokenizer.encode(Path(__file__).read_text(encoding="utf-8"))
        size = self.sizes.file_tokens
        return self._tokenizer.decode(ids[:size]), self._tokenizer.decode(ids[size:])

    def system(self, label: str) -> System:
        [system] = [one for one in SYSTEMS if one.label == label]
        return system

    def server(self, peer: str, label: str, *arguments: str) -> Server:
        """The server of a peer, started once; its weights are those that `compare` has."""
        key = (peer, *arguments)
        if key not in self._servers:
            system = self.system(label)
            folder = prepare(system, self._checkpoint, self._work, self.root)
            python = self.root / system.environment / "bin" / "python"
            words = [str(folder), system.precision, str(self.threads), *arguments]
            server = Server(peer, python, words, self.sizes.new_tokens, self.threads)
            self._servers[key] = server
            server.load(self.prompts(2), 2)  # the first answers are slow
        return self._servers[key]

    def ours(self, *arguments: str) -> Server:
        return self.server("serve_ours", f"ours {self.precision}", *arguments)

    def close(self) -> None:
        for server in self._servers.values():
            server.stop()
        self._servers.clear()

    def processor_seconds(self) -> float:
        """What this process, the servers, and those that are stopped have worked in all."""
        seconds = sum(os.times()[:4])
        for server in self._servers.values():
            fields = Path(f"/proc/{server.process.pid}/stat").read_text(encoding="utf-8")
            ticks = fields.rsplit(")", 1)[1].split()[11:13]
            seconds += sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        return seconds

    def forget(self, server: Server) -> None:
        """Stop a server; it is started anew when it is wanted."""
        server.stop()
        self._servers = {key: one for key, one in self._servers.items() if one is not server}
