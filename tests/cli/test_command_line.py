"""The command line as a process: streams, signals, exit codes, noise, and what it imports."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from commands import COMMAND, in_process, invoke, of_builtin, run

import paddlenlp_codegen_task
from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.cli import app

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(
    one.name or one.callback.__name__ for one in app.registered_commands if one.callback
)
# Which exports the built-in model into the home that tests share: commands then say nothing of it.
pytestmark = pytest.mark.usefixtures("builtin")
GREEDY = ["--decode-strategy=greedy_search", "--max-length=12"]
ENDLESS = ["--ignore-eos", "--no-truncation", "--max-length=900"]


def test_without_a_command_there_is_help():
    result = invoke([])
    assert result.exit_code == 0
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", result.stdout)


@pytest.mark.parametrize("page", ["command_line.md", "command_line_cn.md"])
def test_the_page_knows_commands_and_options(page: str):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `([a-z]+)` \|", text, re.M)) == COMMANDS
    known = {"--help", "--version", "--install-completion", "--show-completion"}
    for command in typer.main.get_command(app).commands.values():  # type: ignore[attr-defined]
        for one in command.params:
            known |= {*one.opts, *one.secondary_opts}
    blocks = "\n".join(re.findall(r"(?s)```bash\n(.*?)```", text))
    named = re.findall(r"(?<![\w-])--[a-z][a-z-]+", text) + re.findall(r"(?<!\S)--[a-z-]+", blocks)
    assert not {*named} - known - {"--no-"}


def test_version():
    result = invoke(["--version"])
    assert (result.exit_code, result.stdout) == (0, f"{paddlenlp_codegen_task.__version__}\n")


@pytest.mark.parametrize("command", [[], *([one] for one in COMMANDS)], ids=" ".join)
def test_help_waits_for_no_library(command: list[str]):
    code = f"""
import sys
from paddlenlp_codegen_task.__main__ import main
sys.argv = ["paddlenlp-codegen", *{command!r}, "--help"]
try:
    main()
finally:
    slow = ["numpy", "paddle", "paddlenlp", "onnxruntime", "onnx", "tokenizers", "huggingface_hub"]
    slow += ["pydantic", "fastapi", "uvicorn", "torch", "transformers", "matplotlib", "safetensors"]
    print({{*slow}} & {{*sys.modules}}, file=sys.stderr)
"""
    done = in_process(code)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert done.stderr == "set()\n"


def test_the_package_waits_for_no_library_and_has_its_names():
    code = """
import sys
import paddlenlp_codegen_task
assert "numpy" not in sys.modules
names = {"CodeGenerator", "Completion", "GenerationConfig", "register"}
assert names <= {*dir(paddlenlp_codegen_task)}
from paddlenlp_codegen_task import *
assert CodeGenerator is paddlenlp_codegen_task.CodeGenerator
assert CodeGenerator.__module__ == "paddlenlp_codegen_task.generator"
assert not hasattr(paddlenlp_codegen_task, "CodeGenerater")
"""
    done = in_process(code)
    assert done.returncode == 0, done.stderr


def test_without_typer_it_says_what_to_install():
    code = """
import runpy, sys
sys.modules["typer"] = None
runpy.run_module("paddlenlp_codegen_task", run_name="__main__")
"""
    done = in_process(code)
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert "pip install 'paddlenlp_codegen_task[serve]'" in line


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_is_shown(shell: str):
    code = f"""
import sys
from paddlenlp_codegen_task.__main__ import main
sys.argv = ["paddlenlp-codegen", "--show-completion", {shell!r}]
main()
"""
    # Else it finds the shell out by itself, and takes no name.
    done = in_process(code, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.returncode == 0, done.stderr
    assert "_PADDLENLP_CODEGEN_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("paddlenlp-codegen com", "complete"),
        ("paddlenlp-codegen complete --decode-strategy be", "beam_search"),
        ("paddlenlp-codegen complete --truncation py", "python"),
        (
            "paddlenlp-codegen complete --model Salesforce/codegen-16B-mo",
            "Salesforce/codegen-16B-mono",
        ),
        ("paddlenlp-codegen complete --repetition", "--repetition-penalty"),
        ("paddlenlp-codegen export --precision int8_", "int8_weight_only"),
    ],
)
def test_a_shell_is_offered_what_may_follow(line: str, offered: str):
    code = """
import sys
from paddlenlp_codegen_task.__main__ import main
sys.argv = ["paddlenlp-codegen"]
main()
"""
    done = in_process(
        code,
        _PADDLENLP_CODEGEN_COMPLETE="complete_bash",
        COMP_WORDS=line,
        COMP_CWORD=str(len(line.split()) - 1),
    )
    assert done.stdout.split() == [offered], done.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"NO_COLOR": "1"},
        {"TERM": "dumb"},
        {"TERM": "", "COLUMNS": "0"},
        {"COLUMNS": "1"},
        {"COLUMNS": "20"},
        {"COLUMNS": "100000"},
        {"COLUMNS": "wide"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONOPTIMIZE": "2"},  # which takes docstrings away
        {"HOME": ""},
    ],
    ids=str,
)
def test_help_in_any_terminal(environment: dict[str, str]):
    done = run("complete", "--help", env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_where_there_is_no_home(home_path: Path):
    """As in a container that runs as a user without an entry."""
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    done = run("complete", *of_builtin(home_path), *GREEDY, "x =", env=environment)
    assert done.returncode == 0, done.stderr


def test_names_outside_the_terminal_s_encoding(home_path: Path, tmp_path: Path):
    file = tmp_path / "\u4e2d.py"
    file.write_text("x =", encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    arguments = ["complete", *of_builtin(home_path), *GREEDY, "--json", "--file", str(file)]
    done = run(*arguments, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["id"] == str(file)


@pytest.mark.parametrize("engine", ["onnxruntime", "paddle"])
def test_nothing_but_results_on_standard_output(engine: str, tmp_path: Path):
    arguments = ["complete", "--model=builtin", f"--home-path={tmp_path}", f"--engine={engine}"]
    arguments += ["--num-threads=1", *GREEDY, "def add(a, b):"]
    first, second = run(*arguments), run(*arguments)
    assert (first.returncode, second.returncode) == (0, 0)
    [line] = first.stderr.splitlines()
    assert re.fullmatch(
        "paddlenlp-codegen: exporting .*builtin to a static graph in fp32, .*", line
    )
    assert second.stderr == ""
    options: Any = {"engine": engine, "num_threads": 1, "home_path": tmp_path}
    with CodeGenerator.from_pretrained("builtin", **options) as generator:
        [[expected]] = generator.generate(
            "def add(a, b):", decode_strategy="greedy_search", max_length=12, token_healing=True
        )
    for done in (first, second):
        assert done.stdout.rstrip("\n") == expected.text.rstrip("\n")


def test_a_warning_is_one_line_and_names_options_as_here(home_path: Path):
    done = run("complete", *of_builtin(home_path), *GREEDY, "--top-p=0.5", "x =")
    assert done.returncode == 0
    warning = "--top-p has no effect with --decode-strategy='greedy_search'"
    assert done.stderr == f"paddlenlp-codegen: {warning}\n"


def test_what_writes_behind_python_s_back_is_no_result():
    code = """
import os, sys
from paddlenlp_codegen_task import __main__
__main__._keep_output_for_results()
os.write(1, b"noise")
os.system("echo more noise")
print("result")
"""
    done = in_process(code)
    assert done.stdout == "result\n"
    assert "noise" in done.stderr


class Process:
    """A command that runs, in a session of its own."""

    def __init__(self, *arguments: str, stdin: Any = subprocess.DEVNULL) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def ended(self) -> tuple[int, str]:
        _, stderr = self.process.communicate(timeout=60)
        return self.process.returncode, stderr.decode()


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals_while_it_generates(signum: int, code: int, home_path: Path):
    command = Process("complete", *of_builtin(home_path), *ENDLESS, "x =")
    assert command.process.stdout is not None
    assert command.process.stdout.read(1)
    command.process.send_signal(signum)
    assert command.ended() == (code, "")


def test_ctrl_c_while_it_waits_for_a_prompt(home_path: Path):
    command = Process("complete", *of_builtin(home_path), stdin=subprocess.PIPE)
    time.sleep(1.5)  # it reads by then; an earlier signal is as good
    command.process.send_signal(signal.SIGINT)
    code, stderr = command.ended()
    assert code in (130, -signal.SIGINT)  # before Python has begun, it is the system's
    assert "Traceback" not in stderr or code != 130


@pytest.mark.parametrize("delay", [0.15, 0.3, 0.5, 0.8])
def test_ctrl_c_at_any_time(delay: float, tmp_path: Path):
    """Whether it is importing, exporting or generating: the home is as good as before."""
    command = Process("complete", *of_builtin(tmp_path), *ENDLESS, "x =")
    time.sleep(delay)
    command.process.send_signal(signal.SIGINT)
    code, _ = command.ended()
    assert code in (0, 130, -signal.SIGINT, 1)
    assert not list(tmp_path.rglob(".building-*"))


def test_a_prompt_from_the_terminal(home_path: Path):
    ours, theirs = os.openpty()
    command = Process("complete", *of_builtin(home_path), *GREEDY, stdin=theirs)
    os.close(theirs)
    os.write(ours, b"x =\n\x04")
    code, stderr = command.ended()
    os.close(ours)
    hint = "reading a prompt from the terminal: Ctrl+D on an empty line ends it"
    assert (code, stderr) == (0, f"paddlenlp-codegen: {hint}\n")


def test_on_a_terminal(home_path: Path, builtin: CodeGenerator):
    """A text is written to a terminal as to a file, and nothing else is: no bar, no colour."""
    ours, theirs = os.openpty()
    arguments = ["complete", *of_builtin(home_path), *GREEDY, "def add(a, b):"]
    with subprocess.Popen([*COMMAND, *arguments], stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        written = b""
        try:
            while more := os.read(ours, 1000):
                written += more
        except OSError:  # as Linux says that the other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0
    [[expected]] = builtin.generate(
        "def add(a, b):", decode_strategy="greedy_search", max_length=12, token_healing=True
    )
    assert written.decode().replace("\r\n", "\n").rstrip("\n") == expected.text.rstrip("\n")


def test_the_console_script_is_there():
    source = (ROOT / "setup.py").read_text(encoding="utf-8")
    [(module, function)] = re.findall(r'"paddlenlp-codegen = ([\w.]+):(\w+)"', source)
    assert callable(getattr(importlib.import_module(module), function))


def test_a_reader_that_has_seen_enough(home_path: Path):
    command = Process("complete", *of_builtin(home_path), *ENDLESS, "x =")
    assert command.process.stdout is not None
    command.process.stdout.read(1)
    command.process.stdout.close()
    assert command.process.stderr is not None
    assert command.process.stderr.read() == b""
    assert command.process.wait(60) == 141


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["models"]], ids=" ".join)
def test_a_reader_that_is_gone(arguments: list[str]):
    reading, writing = os.pipe()
    os.close(reading)
    done = run(*arguments, capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode in (1, 141)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is full")
@pytest.mark.parametrize(
    "arguments", [["--version"], ["models"], ["models", "--json"]], ids=" ".join
)
def test_a_full_disk(arguments: list[str]):
    with open("/dev/full", "w", encoding="ascii") as full:
        done = run(*arguments, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    expected = "cannot write to standard output: No space left on device"
    assert done.stderr == f"paddlenlp-codegen: {expected}\n"


def closing(*descriptors: int) -> Any:
    def close() -> None:
        for one in descriptors:
            os.close(one)

    return close


def test_standard_output_is_closed(home_path: Path):
    arguments = ["complete", *of_builtin(home_path), *GREEDY, "x ="]
    done = run(
        *arguments, stdout=None, capture_output=False, stderr=subprocess.PIPE, preexec_fn=closing(1)
    )
    assert done.returncode == 1
    assert done.stderr == "paddlenlp-codegen: standard output is closed\n"


def test_standard_input_is_closed(home_path: Path):
    arguments = ["complete", *of_builtin(home_path), *GREEDY]
    done = run(*arguments, preexec_fn=closing(0))
    assert done.returncode == 1
    assert done.stderr == "paddlenlp-codegen: cannot read standard input: it is closed\n"
    done = run(*arguments, "x =", preexec_fn=closing(0))
    assert (done.returncode, done.stderr) == (0, "")


def test_standard_error_is_closed(home_path: Path, tmp_path: Path):
    arguments = ["complete", *of_builtin(tmp_path), *GREEDY]  # which says that it exports
    expected = run(*arguments[:2], f"--home-path={home_path}", *arguments[3:], "x =").stdout
    done = run(*arguments, "x =", preexec_fn=closing(2))
    assert (done.returncode, done.stdout) == (0, expected)
    assert run(*arguments, "", preexec_fn=closing(2)).returncode == 2


def test_all_streams_are_closed(home_path: Path):
    """No model's file is opened under the number of a standard stream, and written to."""
    arguments = ["complete", *of_builtin(home_path), *GREEDY, "x ="]
    settings = {"capture_output": False, "preexec_fn": closing(0, 1, 2)}
    assert run(*arguments, **settings).returncode == 1
    assert run("--version", **settings).returncode in (0, 1)
    assert sys.stdout is not None
