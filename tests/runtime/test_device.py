"""Devices by name, and what memory is free there: on machines made up of files and a script."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from paddlenlp_codegen_task.runtime import device

MISSING = "is not here: there are two"
MIB = 1 << 20


# Names


@pytest.mark.parametrize("gpus", [0, 1, 2, None])
def test_the_cpu_is_always_there(gpus: int | None) -> None:
    assert device.parse("cpu", gpus, MISSING) is None


@pytest.mark.parametrize(
    ("name", "gpus", "expected"),
    [
        ("auto", 0, None),
        ("auto", 1, 0),
        ("auto", None, 0),
        ("gpu", 1, 0),
        ("gpu", None, 0),
        ("gpu:0", 2, 0),
        ("gpu:1", 2, 1),
        ("gpu:12", None, 12),
        ("gpu:07", 8, 7),
    ],
)
def test_gpus(name: str, gpus: int | None, expected: int | None) -> None:
    assert device.parse(name, gpus, MISSING) == expected


@pytest.mark.parametrize(("name", "gpus"), [("gpu", 0), ("gpu:0", 0), ("gpu:2", 2), ("gpu:99", 1)])
def test_a_gpu_that_is_missing(name: str, gpus: int) -> None:
    with pytest.raises(ValueError, match=rf"^device: '{name}' is not here: there are two$"):
        device.parse(name, gpus, MISSING)


@pytest.mark.parametrize(
    "name", ["", "cuda", "gpu:", "gpu:-1", "gpu:a", "gpu:0x1", "gpu:1 ", "GPU", "auto:0", "cpu\n"]
)
@pytest.mark.parametrize("gpus", [0, 2, None])
def test_names_that_are_none(name: str, gpus: int | None) -> None:
    with pytest.raises(ValueError, match=r"^device must be 'auto', 'cpu', 'gpu' or 'gpu:N', got"):
        device.parse(name, gpus, MISSING)


# GPUs that the driver shows


class Driver:
    """NVIDIA's driver, which answers with a status and a number."""

    def __init__(self, gpus: int, status: int = 0) -> None:
        self._gpus, self._status = gpus, status

    def cuInit(self, flags: int) -> int:
        assert flags == 0
        return self._status

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self._gpus
        return 0


def test_gpus_that_the_driver_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for driver, expected in ((Driver(2), 2), (Driver(0), 0), (Driver(2, status=100), 0)):
        monkeypatch.setattr(
            device.ctypes, "CDLL", lambda name, driver=driver: asked.append(name) or driver
        )
        assert device.cuda_devices() == expected
    assert asked == ["libcuda.so.1"] * 3


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_DRIVER", "libcuda-that-is-not-here.so.1")
    assert device.cuda_devices() == 0


# Free memory of the host


class Host:
    """What the system tells of its memory, in files."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.cgroups = folder / "proc", folder / "cgroup"
        self.proc.mkdir()
        self.cgroups.mkdir()

    def system(self, available: int) -> None:
        lines = ["MemTotal:       99999999 kB", "MemFree:          123456 kB"]
        lines += [f"MemAvailable:   {available:8} kB", "Buffers:              77 kB"]
        (self.proc / "meminfo").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def cgroup(self, limit: object, used: object) -> None:
        (self.cgroups / "memory.max").write_text(f"{limit}\n", encoding="utf-8")
        (self.cgroups / "memory.current").write_text(f"{used}\n", encoding="utf-8")

    def cgroup_v1(self, limit: object, used: object) -> None:
        folder = self.cgroups / "memory"
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(f"{limit}\n", encoding="utf-8")
        (folder / "memory.usage_in_bytes").write_text(f"{used}\n", encoding="utf-8")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host(tmp_path)
    monkeypatch.setattr(device, "_PROC", made.proc)
    monkeypatch.setattr(device, "_CGROUPS", made.cgroups)
    return made


def test_where_nothing_is_told_it_is_unknown(host: Host) -> None:
    assert device.free_bytes(None) is None
    (host.proc / "meminfo").write_bytes(b"\xff\xfe MemAvailable: many kB\n")
    host.cgroup("max", "\xff")
    assert device.free_bytes(None) is None


def test_what_the_system_has_available(host: Host) -> None:
    host.system(4_000_000)
    assert device.free_bytes(None) == 1024 * 4_000_000
    host.cgroup("max", 5_000_000)  # no limit
    assert device.free_bytes(None) == 1024 * 4_000_000


def test_what_the_control_group_leaves(host: Host) -> None:
    host.system(4_000_000)
    host.cgroup(3_000_000_000, 1_000_000_000)
    assert device.free_bytes(None) == 2_000_000_000
    host.system(1_000_000)  # whichever is less
    assert device.free_bytes(None) == 1024 * 1_000_000


def test_a_control_group_over_its_limit_leaves_nothing(host: Host) -> None:
    host.system(4_000_000)
    host.cgroup(1_000_000_000, 1_000_001_000)
    assert device.free_bytes(None) == 0


def test_control_groups_of_the_first_version(host: Host) -> None:
    host.system(4_000_000)
    host.cgroup_v1(3_000_000_000, 500_000_000)
    assert device.free_bytes(None) == 2_500_000_000


def test_a_control_group_s_limit_that_is_none(host: Host) -> None:
    """The first version writes a number larger than any memory."""
    host.system(4_000_000)
    host.cgroup_v1(9223372036854771712, 500_000_000)
    assert device.free_bytes(None) == 1024 * 4_000_000


def test_this_machine_has_memory() -> None:
    found = device.free_bytes(None)
    assert found is not None
    assert found > MIB


# Free memory of a GPU


class Smi:
    """A script in the place of nvidia-smi, which notes what it is asked."""

    def __init__(self, folder: Path) -> None:
        self._path, self._asked = folder / "nvidia-smi", folder / "asked"

    def answers(self, text: str, status: int = 0) -> None:
        lines = ["#!/bin/sh", f'printf "%s\\n" "$@" > "{self._asked}"', f"printf '{text}'"]
        self._path.write_text("\n".join([*lines, f"exit {status}", ""]), encoding="utf-8")
        self._path.chmod(0o755)

    @property
    def asked(self) -> list[str]:
        return self._asked.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return Smi(folder)


def test_a_gpu_s_memory(smi: Smi) -> None:
    smi.answers("40536 MiB\\n")
    assert device.free_bytes(1) == 40536 * MIB
    assert smi.asked == ["--id=1", "--query-gpu=memory.free", "--format=csv,noheader"]


@pytest.mark.parametrize(
    ("visible", "device_id", "asked"),
    [
        ("", 0, "0"),
        ("3", 0, "3"),
        ("2,0,1", 0, "2"),
        ("2,0,1", 2, "1"),
        (" 2 , 0 ", 1, "0"),
        ("GPU-8f6a,GPU-91bc", 1, "GPU-91bc"),
        ("2", 1, "1"),  # there is no such one, as the engine will say
    ],
)
def test_a_gpu_s_number_is_among_the_visible_ones(
    smi: Smi, monkeypatch: pytest.MonkeyPatch, visible: str, device_id: int, asked: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    smi.answers("7 MiB\\n")
    assert device.free_bytes(device_id) == 7 * MIB
    assert smi.asked[0] == f"--id={asked}"


@pytest.mark.parametrize(
    ("text", "status"),
    [("", 0), ("[N/A]\\n", 0), ("No devices were found\\n", 0), ("900 MiB\\n", 6)],
)
def test_a_gpu_that_does_not_tell(smi: Smi, text: str, status: int) -> None:
    smi.answers(text, status)
    assert device.free_bytes(0) is None
    assert smi.asked


def test_without_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device.free_bytes(0) is None


def test_nvidia_smi_that_hangs(smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    run = subprocess.run

    def impatient(*arguments: object, timeout: float, **named: object) -> object:
        assert timeout > 1
        return run(*arguments, timeout=0.01, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", impatient)
    smi.answers("1 MiB\\n' && exec sleep 60 && printf '")
    assert device.free_bytes(0) is None


@pytest.mark.parametrize(
    ("version", "name"), [("", "inactive_file"), ("memory/", "total_inactive_file")]
)
def test_files_that_the_kernel_would_give_up_are_free(host: Host, version: str, name: str) -> None:
    (host.cgroup_v1 if version else host.cgroup)(4_000_000_000, 4_000_000_000)
    statistics = f"anon 5\n{name} 3000000000\nactive_file 7\n"
    (host.cgroups / f"{version}memory.stat").write_text(statistics, encoding="utf-8")
    assert device.free_bytes(None) == 3_000_000_000
