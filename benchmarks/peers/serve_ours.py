"""This package's server, as `paddlenlp-codegen serve` has it, which also runs its engine directly.

Beside HTTP it does what lines of JSON on standard input ask, and answers in lines of JSON: the same
generator without a server in front, so that what the server adds can be told from what is below.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from typing import Any

import http_worker

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.decoding.events import Event, Text
from paddlenlp_codegen_task.decoding.request import Request
from paddlenlp_codegen_task.engine import Sink
from paddlenlp_codegen_task.serving.app import create_app
from paddlenlp_codegen_task.serving.run import Server, listen
from paddlenlp_codegen_task.serving.settings import Settings

# Greedy search as the other systems have it, to the length that is asked for.
OPTIONS: dict[str, Any] = {
    "decode_strategy": "greedy_search",
    "repetition_penalty": 1.0,
    "truncation": None,
    "ignore_eos": True,
}


class Watch:
    """How long the engine takes, from a request that comes in to its first text that goes out."""

    def __init__(self, generator: CodeGenerator) -> None:
        self._submit = generator.engine.submit
        self._tokenizer = generator.tokenizer
        self._seconds: dict[str, float] = {}  # by the prompt
        generator.engine.submit = self.submit  # type: ignore[method-assign]

    def submit(self, requests: list[Request], sink: Sink) -> None:
        self._submit(requests, _Watched(sink, self._seconds, self._tokenizer.decode))

    def take(self) -> dict[str, float]:
        """What was seen since the last time."""
        found = dict(self._seconds)
        self._seconds.clear()
        return found


class _Watched:
    def __init__(self, sink: Sink, seconds: dict[str, float], decode: Any) -> None:
        self._sink, self._seconds, self._decode = sink, seconds, decode
        self._start = time.monotonic()
        self._seen: set[Request] = set()

    def put(self, request: Request, events: list[Event]) -> bool:
        now = time.monotonic()
        held = self._sink.put(request, events)  # before what is done here takes any time
        if request not in self._seen and any(isinstance(e, Text) and e.text for e in events):
            self._seen.add(request)
            self._seconds[self._decode(request.prompt_ids)] = now - self._start
        return held


class Tasks:
    """What the lines of standard input may ask for."""

    def __init__(self, generator: CodeGenerator) -> None:
        self._generator = generator
        self._watch = Watch(generator)

    def generate(self, prompts: list[str], new_tokens: int, batch_size: int) -> dict[str, Any]:
        """All prompts in one call."""
        start = time.monotonic()
        found = self._generator.generate(
            prompts, batch_size=batch_size, max_length=new_tokens, progress=False, **OPTIONS
        )
        seconds = time.monotonic() - start
        return {"tokens": sum(len(one.token_ids) for (one,) in found), "seconds": seconds}

    def streams(self, prompts: list[str], new_tokens: int, clients: int) -> dict[str, Any]:
        """Streams of so many threads; seconds to the first piece of each."""
        left, seconds = iter(prompts), []
        lock = threading.Lock()

        def client() -> None:
            while True:
                with lock:
                    prompt = next(left, None)
                if prompt is None:
                    return
                start = time.monotonic()
                pieces = self._generator.stream(prompt, max_length=new_tokens, **OPTIONS)
                next(pieces)
                seconds.append(time.monotonic() - start)
                for _ in pieces:
                    pass

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"first_seconds": seconds}

    def engine_seconds(self) -> dict[str, float]:
        return self._watch.take()

    def run(self, answers: Any) -> None:
        for line in sys.stdin:
            values = json.loads(line)
            print(json.dumps(getattr(self, values.pop("task"))(**values)), file=answers, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    answers = http_worker.take_stdout()
    parser = http_worker.arguments()
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--prefix-cache-bytes", type=int, default=0)
    parser.add_argument("--max-waiting", type=int, default=256)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)  # a line a request, as the command has it
    settings = Settings(max_waiting=options.max_waiting, token_healing=False)
    listener = listen("127.0.0.1", 0)
    with CodeGenerator.from_pretrained(
        options.folder / "checkpoint",
        engine="onnxruntime",
        precision=options.precision,
        num_threads=options.threads,
        home_path=options.folder,
        batch_size=options.batch_size,
        prefix_cache_bytes=options.prefix_cache_bytes,
    ) as generator:
        tasks = Tasks(generator)
        server = Server(create_app(generator, settings), settings.drain_seconds, listener)
        threading.Thread(target=tasks.run, args=(answers,), daemon=True).start()
        http_worker.ready(answers, listener)
        server.serve_until_stopped()


if __name__ == "__main__":
    main()
