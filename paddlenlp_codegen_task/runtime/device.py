"""Which device a model runs on, and how much memory is free there; for both engines."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from paddlenlp_codegen_task.checks import shown, text

_NAME = re.compile(r"auto|cpu|gpu(?::([0-9]{1,4}))?")
_DRIVER = "libcuda.so.1"
_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
# Limit and use of this process's memory, by version of control groups; and where they tell how much
# of the use is files that were read, which the kernel gives up when memory is asked for.
_CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def checked(device: Any) -> str:
    """Return a device's name, or raise an error if it cannot be one."""
    name = text(device)
    if name is None or not _NAME.fullmatch(name):
        raise ValueError(f"device must be 'auto', 'cpu', 'gpu' or 'gpu:N', got {shown(device)}")
    return name


def parse(device: str, gpus: int | None, missing: str) -> int | None:
    """Resolve "auto", "cpu", "gpu" or "gpu:N" to a GPU's number, or None for the CPU.

    Args:
        device: what was asked for.
        gpus: how many the engine can use; None if it can use any, but cannot tell how many.
        missing: why there is no such GPU, and what to do.

    Raises:
        ValueError: it is none of these, or there is no such GPU.
    """
    if device == "cpu" or (device == "auto" and gpus == 0):
        return None
    match = _NAME.fullmatch(checked(device))
    device_id = int((match and match[1]) or 0)
    if gpus is not None and device_id >= gpus:
        raise ValueError(f"device: {device!r} {missing}")
    return device_id


def cuda_devices() -> int:
    """How many GPUs NVIDIA's driver shows this process; none where there is no driver."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def free_bytes(device_id: int | None) -> int | None:
    """Memory that is free on a GPU or, if `device_id` is None, for this process; None if unknown.

    On the host, the least of what the system has available and what its control group leaves.
    """
    return _free_host() if device_id is None else _free_gpu(device_id)


def _free_host() -> int | None:
    found = []
    meminfo = _read(_PROC / "meminfo")
    if match := re.search(r"^MemAvailable:\s*(\d+) kB", meminfo, re.MULTILINE):
        found.append(1024 * int(match[1]))
    for limit, usage, statistics, name in _CGROUP_FILES:
        most, used = _read(_CGROUPS / limit).strip(), _read(_CGROUPS / usage).strip()
        if most.isdigit() and used.isdigit():
            match = re.search(rf"^{name} (\d+)", _read(_CGROUPS / statistics), re.MULTILINE)
            found.append(max(int(most) - int(used) + (int(match[1]) if match else 0), 0))
    return min(found, default=None)


def _free_gpu(device_id: int) -> int | None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [one.strip() for one in visible.split(",") if one.strip()]
    name = names[device_id] if device_id < len(names) else str(device_id)
    command = ["nvidia-smi", f"--id={name}", "--query-gpu=memory.free", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.match(r"\s*(\d+) MiB", answer.stdout)
    return int(match[1]) << 20 if match else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
