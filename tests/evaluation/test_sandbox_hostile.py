"""Programs that try to get out of the sandbox, or to pass without being right (hostile/)."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sandboxes import sandbox

import paddlenlp_codegen_task
from paddlenlp_codegen_task.evaluation.sandbox import Sandbox
from paddlenlp_codegen_task.evaluation.sandbox.jail import WAYS
from paddlenlp_codegen_task.evaluation.verdict import check_function, last_printed

HOSTILE = Path(__file__).with_name("hostile")
ESCAPES = sorted(path.stem for path in (HOSTILE / "escape").glob("*.py"))
FORGERIES = sorted(path.stem for path in (HOSTILE / "forge").glob("*.py"))


def source(kind: str, name: str, targets: dict[str, Any] | None = None) -> tuple[str, list[str]]:
    """A program, and how it may end."""
    text = (HOSTILE / kind / f"{name}.py").read_text(encoding="utf-8")
    ends = re.search(r"^Ends: (.+)$", text, re.MULTILINE)
    given = "".join(f"{name} = {value!r}\n" for name, value in (targets or {}).items())
    return given + text, ends[1].split(", ") if ends else ["held"]


# Those that nothing but the clock may end, and those that take memory until there is no more.
ENDLESS = [name for name in ESCAPES if "timed out" in source("escape", name)[1]]
GREEDY = ("fill_memory", "unpack_a_bomb")
# That do no harm to the machine where nothing holds them.
HARMLESS = (
    "read_passwd", "read_canary", "connect", "abstract_socket", "kill", "fork_bomb",
)  # fmt: skip

PROMPT = '''
def twice(x):
    return 2 * x


def add(a, b):
    """The sum of two numbers, or both lists in one."""
'''
TEST = """
import random


def check(candidate):
    assert candidate(1, 2) == 3
    assert 4 == candidate(2, 2)
    assert not candidate(1, 0) != 1
    for _ in range(5):
        a, b = random.randint(0, 99), random.randint(0, 99)
        expected = a + b
        assert candidate(a, b) == expected
    assert twice(candidate(2, 3)) == 10
    xs, ys = [1], [2]
    total = [1, 2]
    assert candidate(xs, ys) == total
    assert candidate(xs, ys) == xs + ys
    assert candidate(7, 7) == 14
"""


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the harness's."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.fixture
def targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: subprocess.Popen[bytes]
) -> Iterator[dict[str, Any]]:
    """What programs aim at, by the names that they know it by."""
    canary = tmp_path / "canary-of-the-harness"
    canary.write_text("the harness's", encoding="utf-8")
    secret = "the-value-of-a-variable"
    monkeypatch.setenv("HARNESS_SECRET", secret)
    name = f"harness-{tmp_path}"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        abstract.bind("\0" + name)
        abstract.listen()
        yield {
            "BACKWARDS": str(Path(paddlenlp_codegen_task.__file__).parent)[::-1],
            "CANARY": str(canary),
            "HOMES": [str(Path.home()), str(tmp_path), str(Path.cwd())],
            "NAME": name,
            "PORT": server.getsockname()[1],
            "SECRET": secret,
            "VICTIM": victim.pid,
        }
    assert canary.read_text(encoding="utf-8") == "the harness's"
    assert sorted(tmp_path.iterdir()) == [canary]


def held(way: str, name: str, targets: dict[str, Any]) -> None:
    """Run a program that tries to get out, and see how it ends."""
    program, ends = source("escape", name, targets)
    limits: dict[str, Any] = {"seconds": 1.5 if name in ENDLESS else 60.0}
    if name in GREEDY:
        limits["memory_bytes"] = 256 << 20
    printed = last_printed(sandbox(way, **limits), program)
    assert (printed.value if printed.printed else printed.result) in ends, name
    assert printed.seconds < limits["seconds"] + 10


def assert_nobody_was_harmed(targets: dict[str, Any], victim: subprocess.Popen[bytes]) -> None:
    assert victim.poll() is None
    assert not [home for home in targets["HOMES"] if (Path(home) / "written").exists()]


@pytest.mark.parametrize("name", [name for name in ESCAPES if name not in ENDLESS])
def test_no_program_gets_out(
    way: str, name: str, targets: dict[str, Any], victim: subprocess.Popen[bytes]
) -> None:
    if (way, name) == ("bubblewrap", "many_files"):
        pytest.skip("bubblewrap bounds the size of /tmp, not how many files are in it")
    held(way, name, targets)
    assert_nobody_was_harmed(targets, victim)


def test_no_program_outlasts_its_time(
    way: str, targets: dict[str, Any], victim: subprocess.Popen[bytes]
) -> None:
    """All at once, as each takes all the time that it is given."""
    sandbox(way)
    with ThreadPoolExecutor(len(ENDLESS)) as pool:
        list(pool.map(lambda name: held(way, name, targets), ENDLESS))
    assert_nobody_was_harmed(targets, victim)


@pytest.mark.parametrize("name", HARMLESS)
def test_they_do_get_out_where_there_is_no_sandbox(name: str, targets: dict[str, Any]) -> None:
    """That is, the programs do what they say, and it is the sandbox that keeps them from it."""
    if name == "fork_bomb":  # of 200 generations
        program = "import os\nif os.fork() == 0: os._exit(0)\nprint('escaped')\n"
    else:
        program, _ = source("escape", name, targets)
    printed = last_printed(Sandbox(unsafe=True), program)
    assert str(printed.value).startswith("escaped"), printed


@pytest.mark.parametrize("name", FORGERIES)
def test_no_program_passes_that_is_not_right(way: str, name: str) -> None:
    program, _ = source("forge", name)
    seconds = 1.5 if name in ("stalls", "exception_without_end") else 60.0
    verdict = check_function(sandbox(way, seconds=seconds), PROMPT + program, "add", TEST, PROMPT)
    assert not verdict.passed
    assert verdict.result == "timed out" or verdict.result.startswith("failed: ")
    assert verdict.result.isprintable()
    assert len(verdict.result) <= 200


def test_a_right_program_passes(way: str) -> None:
    program = PROMPT + "    return a + b\n"
    verdict = check_function(sandbox(way), program, "add", TEST, PROMPT)
    assert (verdict.passed, verdict.result) == (True, "passed")


@pytest.mark.parametrize(
    "name", [name for name in FORGERIES if "Fools: a returncode of 0" in source("forge", name)[0]]
)
def test_they_do_pass_where_a_returncode_of_0_is_a_pass(name: str) -> None:
    """That is, the programs do what they say, and it is the verdict that they fail to reach."""
    program = f"{PROMPT}{source('forge', name)[0]}\n{TEST}\ncheck(add)\n"
    ran = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, timeout=60, check=False
    )
    assert ran.returncode == 0, ran.stderr.decode()


def test_there_are_as_many_as_were_wanted() -> None:
    assert len(ESCAPES) + len(FORGERIES) >= 40
    assert len(FORGERIES) >= 10
