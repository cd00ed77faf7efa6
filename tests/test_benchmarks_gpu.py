"""benchmarks/gpu.py as far as it goes without a GPU: its parts on the CPU, and what runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
PRECISIONS = ("fp32", "fp16", "int8_weight_only", "int4")


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(BENCHMARKS):
            del sys.modules[name]


@pytest.fixture
def part(benchmarks: None, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs a part of the dry run in this process: PyTorch and the like are imported once."""
    import gpu_parts

    def part(kind: str, engine: str = "onnxruntime") -> dict[str, Any]:
        half = "fp32" if engine == "paddle" else "fp16"
        settings = {"engine": engine, "dry_run": True, "size": "dry", "half": half}
        job = gpu_parts.Job({**settings, "work": str(tmp_path)})
        for precision in PRECISIONS if engine == "onnxruntime" else ("fp32",):
            if not job.folder(precision).is_dir():
                gpu_parts.export(job, precision)
        return {key: measure() for key, measure in gpu_parts.PARTS[kind](job)}

    return part


def test_checks(part: Any) -> None:
    found = part("check")
    assert set(found) == {one + graph for one in PRECISIONS for graph in ("", ", CUDA graphs")}
    worst = {"fp32": 1e-4, "fp16": 0.02, "int8_weight_only": 0.2, "int4": 1.5}
    for name, one in found.items():
        precision = name.partition(",")[0]
        assert max(one["errors_in_deviations"]) < worst[precision]
        assert len(one["errors_in_deviations"]) == len(one["equal_tokens"]) == 3
        if precision == "fp32":
            assert one["equal_tokens"] == [one["of"]] * 3


def test_the_built_in_model(part: Any) -> None:
    [texts] = part("builtin").values()
    assert len(texts) == 4
    assert set(texts.values()) == {"4 of 4 equal"}


def test_checks_against_numpy(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_parts

    monkeypatch.setattr(gpu_parts.Job, "has_transformers", False)
    [(name, found)] = part("check", "paddle").items()
    assert name == "fp32"
    assert max(found["errors_in_deviations"]) < 1e-4
    assert "equal_tokens" not in found


def test_speed_and_memory(part: Any) -> None:
    found = part("speed")
    ours = ["ours fp16", *(f"ours {one}, CUDA graphs" for one in PRECISIONS[1:])]
    for batch in ("batch 1", "batch 2"):
        assert sorted(found[batch]) == sorted([*ours, "transformers fp16"])
        for name, one in found[batch].items():
            assert one["tokens_per_second"] > 0
            assert ("share_of_bandwidth" in one) is name.startswith("ours")
    assert all(one["first_token_seconds"] > 0 for one in found["prompt of 16"].values())
    assert found["copy_bytes_per_second"] > 1e6
    assert len(part("compiled")["batch 1"]) == 2
    [measured] = part("memory").values()
    assert list(measured["free_bytes"])[:2] == ["before", "loaded"]
    assert measured["buffers_by_our_count"] == 2 * 256 * 2 * 2 * 64 * 2  # in float16


def test_generate_and_profile(part: Any) -> None:
    for one in part("generate").values():
        assert set(one) == {"ours fp32", "transformers fp16"}
        assert all(rate > 0 for rate in one.values())
    found = part("profile")
    marks = ("", ", CUDA graphs")
    assert {f"decode, batch {n}{mark}" for n in (1, 2) for mark in marks} <= set(found)
    for name, one in found.items():
        if name.startswith("first steps"):
            assert len(one) == 4
        else:
            assert one["milliseconds"] > 0
            assert one["longest"] == []  # PyTorch's profiler knows of no kernels on a CPU


def test_a_system_that_fails_is_noted(benchmarks: None, tmp_path: Path) -> None:
    import gpu_parts

    class System:
        def __init__(self, seconds: float) -> None:
            self._seconds = seconds

        def run(self, prompts: Any, new_tokens: int) -> tuple[float, float, Any]:
            if not self._seconds:
                raise MemoryError("the device has none left")
            return 1.5, self._seconds, None

    settings = {"engine": "paddle", "dry_run": False, "half": "fp16", "work": str(tmp_path)}
    systems = {"a": System(4), "b": System(0)}
    assert gpu_parts.alternated(gpu_parts.Job(settings), systems, [[1], [2]], 9) == {
        "a": {"first_token_seconds": 1.5, "tokens_per_second": 4},
        "b": {"error": "MemoryError: the device has none left"},
    }


def command(folder: Path, *arguments: str, script: Path = BENCHMARKS / "gpu.py") -> list[str]:
    places = ["--out", str(folder / "out.json"), "--work", str(folder / "work")]
    return [sys.executable, str(script), "--dry-run", *places, *arguments]


def test_the_dry_run_in_processes_of_their_own(tmp_path: Path) -> None:
    only = ["--only", "machine", "memory dry"]
    run = subprocess.run(command(tmp_path, *only), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert found["about"]["gpu"] == "none: dry run"
    parts = {name: part for name, part in found["parts"].items() if part.get("done")}
    assert sorted(parts) == ["machine", "memory dry"]
    assert "torch" in parts["machine"]["found"]["versions"]
    assert [path.name for path in (tmp_path / "work").glob("onnx*")] == ["onnxruntime-dry-fp16"]
    again = subprocess.run(command(tmp_path, *only), capture_output=True, text=True, check=True)
    assert again.stdout == f"{tmp_path / 'out.json'} has all of it\n"


SCRIPT = """
    import json, os, sys, time
    kind, settings = sys.argv[1], json.loads(sys.argv[2])
    with open(os.path.join(settings["work"], "calls"), "a") as file:
        print(kind, settings["size"], *settings.get("found", settings.get("precision", "")),
              file=file)
    if kind == "export":
        if settings["precision"] == "int4":
            sys.exit("no disk")
        os.makedirs(f"{settings['work']}/onnxruntime-dry-{settings['precision']}")
    elif kind == "machine":
        print(json.dumps({"key": "a", "value": 1}), flush=True)
        if not os.path.exists(os.path.join(settings["work"], "mended")):
            print("what it said", file=sys.stderr)
            sys.exit(3)
    elif kind == "builtin":
        print(json.dumps({"key": "b", "value": 2}), flush=True)
        time.sleep(60)
    else:
        print(json.dumps({"key": "c", "value": kind}), flush=True)
"""


def test_parts_that_fail_or_take_too_long(tmp_path: Path) -> None:
    """The others go on, what was found is kept, and the next run does what is missing."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    source = (BENCHMARKS / "gpu.py").read_text(encoding="utf-8")
    assert source.count('Part("builtin", None, 90)') == 1
    source = source.replace('Part("builtin", None, 90)', 'Part("builtin", None, 1.5)')
    (folder / "gpu.py").write_text(source, encoding="utf-8")
    (folder / "gpu_parts.py").write_text(textwrap.dedent(SCRIPT), encoding="utf-8")

    def begin() -> tuple[subprocess.CompletedProcess[str], dict[str, Any], list[str]]:
        script = folder / "gpu.py"
        (tmp_path / "work" / "calls").unlink(missing_ok=True)
        run = subprocess.run(
            command(tmp_path, script=script), capture_output=True, text=True, check=False
        )
        found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
        calls = (tmp_path / "work" / "calls").read_text(encoding="utf-8").splitlines()
        return run, found["parts"], calls

    run, parts, calls = begin()
    assert run.returncode == 1
    assert "not done: machine, builtin" in run.stderr
    assert parts["machine"]["error"] == "exit code 3; what it said"
    assert parts["machine"]["found"] == {"a": 1}
    assert parts["builtin"]["error"].startswith("stopped after ")
    assert parts["builtin"]["found"] == {"b": 2}
    assert parts["exports"]["errors"] == {"dry int4": "no disk"}
    assert parts["speed dry"]["found"] == {"c": "speed"}
    assert sorted(calls[:4]) == [f"export dry {' '.join(one)}" for one in sorted(PRECISIONS)]

    (tmp_path / "work" / "mended").touch()
    run, parts, calls = begin()
    assert calls == ["machine None a", "builtin None b"]
    assert parts["machine"]["done"]
    assert "error" not in parts["machine"]
    assert "not done: builtin;" in run.stderr


def test_results_of_another_gpu_are_not_mixed_in(tmp_path: Path) -> None:
    about = {"gpu": "another", "engine": "onnxruntime", "dry_run": False}
    (tmp_path / "out.json").write_text(json.dumps({"about": about, "parts": {}}), encoding="utf-8")
    run = subprocess.run(command(tmp_path), capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "has results of ['another', 'onnxruntime', False]" in run.stderr
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["parts"] == {}


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    with_dry_run = command(tmp_path)
    without = [one for one in with_dry_run if one != "--dry-run"]
    environment = {**os.environ, "PATH": str(tmp_path)}
    run = subprocess.run(without, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 1
    assert run.stderr == "nvidia-smi shows no GPU here; --dry-run does without\n"


def test_parts_find_cuda_s_libraries(
    benchmarks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu

    monkeypatch.setenv("LD_LIBRARY_PATH", "/theirs")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    for name in ("cu13", "cudnn"):
        (tmp_path / "nvidia" / name / "lib").mkdir(parents=True)
    found = gpu.environment(tmp_path / "site", ["", str(tmp_path), "/not/there"])
    ours = [str(tmp_path / "nvidia" / name / "lib") for name in ("cu13", "cudnn")]
    assert found["LD_LIBRARY_PATH"].split(os.pathsep) == [*ours, "/theirs"]
    assert found["PYTHONPATH"].split(os.pathsep) == [str(ROOT), str(tmp_path / "site")]


def test_wheels_are_installed_into_a_folder_of_their_own(benchmarks: None, tmp_path: Path) -> None:
    import gpu

    wheels, site = tmp_path / "wheels", tmp_path / "site"
    wheels.mkdir()
    with pytest.raises(SystemExit, match="there is no wheel in"):
        gpu.install(wheels, site)
    write_wheel(wheels)
    gpu.install(wheels, site)
    assert (site / "only_here.py").read_text(encoding="utf-8") == "x = 1\n"


def write_wheel(folder: Path) -> None:
    """The least that pip takes for a wheel."""
    import zipfile

    info = "only_here-1.dist-info"
    files = {
        "only_here.py": "x = 1\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: only_here\nVersion: 1\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / "only_here-1-py3-none-any.whl", "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
