"""A process that makes the attacks of one kind, so that a crash or a hang is an answer, too."""

from __future__ import annotations

import importlib
import json
import os
import select
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from .outcomes import Outcomes

TESTS = Path(__file__).parents[1]
GRACE = 30.0  # seconds beyond its limit, after which an attack is taken to hang
STARTING = 300.0  # seconds for imports and the models that are attacked
FROM_TRACEBACK = 3000  # characters of it that are kept


class Attacked(Exception):
    """An attack failed; the message says how, in as many lines as it takes."""


class Worker:
    """A process of its own that makes the attacks of one kind, started when it is needed."""

    def __init__(self, kind: str, folder: Path) -> None:
        """Work in `folder`, which is made, and may hold what an earlier one left."""
        self.kind = kind
        self.limit: float = importlib.import_module(f".{kind}", __package__).LIMIT
        self._folder = folder.resolve()
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""

    def attack(self, given: dict[str, Any]) -> Outcomes:
        """Make one attack; `Attacked` says what went wrong, a process that died included."""
        self.start()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        began = time.monotonic()
        process.stdin.write(json.dumps(given).encode() + b"\n")
        process.stdin.flush()
        answer = self._answer(self.limit + GRACE)
        took = time.monotonic() - began
        if "failure" in answer:
            raise Attacked(answer["failure"])
        if took > self.limit:
            raise Attacked(f"took {took:.1f} s, above {self.limit:.0f}")
        return Counter(answer["outcomes"])

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()
            self._process = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the process unless it runs, and have it prepare what is attacked."""
        if self._process is None:
            home = self._folder / "home"
            home.mkdir(parents=True, exist_ok=True)
            with (self._folder / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", f"campaign.{Path(__file__).stem}", self.kind],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    cwd=home,  # where relative paths among the hostile ones lead
                    env=_environment(home),
                    start_new_session=True,  # whoever interrupts means this process, not that
                )
            self._unread = b""
            self._answer(STARTING)

    def _answer(self, seconds: float) -> dict[str, Any]:
        """The next line of the process; `Attacked` if it dies or none comes in time."""
        assert self._process is not None
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left < 0 or not select.select([self._process.stdout], [], [], left)[0]:
                self.close()
                raise Attacked(f"gave no answer in {seconds:.0f} s")
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            if not piece:
                status = self._process.wait()
                self.close()
                log = (self._folder / "log").read_text(errors="replace")
                raise Attacked(f"died, with status {status}: {log[-FROM_TRACEBACK:]}")
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _environment(home: Path) -> dict[str, str]:
    """No network, and none of the files of whoever runs this."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "HOME": str(home),
        "HF_HOME": str(home / "huggingface"),
        "PPNLP_HOME": str(home / "paddlenlp"),
        "PPNLP_ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }


def main(kind: str) -> None:
    """Answer each line of standard input, an attack's input, with one that says how it ended."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer

    def answer(**values: object) -> None:
        print(json.dumps(values), file=answers, flush=True)

    attacker = importlib.import_module(f".{kind}", __package__).Attacker(Path.cwd().parent)
    answer()
    for line in sys.stdin:
        try:
            outcomes = attacker.attack(json.loads(line))
            if not isinstance(outcomes, Counter):
                outcomes = Counter([outcomes])
            answer(outcomes=outcomes)
        except BaseException:
            answer(failure=traceback.format_exc(chain=True)[-FROM_TRACEBACK:])


if __name__ == "__main__":
    main(sys.argv[1])
