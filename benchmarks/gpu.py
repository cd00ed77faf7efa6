"""What is to be known on a machine with an NVIDIA GPU, in one command and under nine minutes.

    python benchmarks/gpu.py --wheels build/wheels --out build/gpu.json
    python benchmarks/gpu.py --dry-run --out build/gpu.json

It needs PyTorch, transformers, onnx and tokenizers there, and of this package a checkout; Paddle it
does without. Wheels (onnxruntime-gpu) go into a folder of their own. Each part is a process with a
time to keep to, and what it finds is written at once: begun again with the same --out, the script
does what is missing there, a part that has failed as well. With --engine paddle it measures Paddle
Inference instead, against NumPy where there is no PyTorch. --dry-run does the same on the CPU with
the smallest of models: its times mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import queue
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PRECISIONS = {
    "onnxruntime": ("fp32", "fp16", "int8_weight_only", "int4"),
    "paddle": ("fp32", "fp16"),
}
DRY_SIZE = "dry"


@dataclass(frozen=True)
class Part:
    """Something to find out, in a process of its own.

    Attributes:
        kind: the function of gpu_parts.py.
        size: of the model; None for the built-in one, or for none.
        seconds: it is stopped after.
        precisions: of the exports that it needs.
    """

    kind: str
    size: str | None = None
    seconds: float = 60
    precisions: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.kind} {self.size}" if self.size else self.kind


def parts(engine: str, sizes: list[str], half: str) -> list[Part]:
    """All there is to do, what matters most first; `half` is the precision that is not fp32."""
    every = tuple(dict.fromkeys(half if one == "fp16" else one for one in PRECISIONS[engine]))
    found = [Part("machine", None, 60), Part("builtin", None, 90)]
    found += [Part("check", size, 120, every) for size in sizes]
    found += [Part("speed", size, 150, every[every.index(half) :]) for size in sizes]
    found += [Part("memory", size, 60, (half,)) for size in sizes]
    found += [Part("generate", size, 90) for size in sizes[:1]]
    if engine == "onnxruntime":
        found += [Part("profile", size, 60, (half,)) for size in sizes]
        found += [Part("compiled", size, 150, (half,)) for size in sizes]
    return found


class Results:
    """A JSON file of what has been found, written with each measurement."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self._path = path
        self.values: dict[str, Any] = {"about": about, "parts": {}}
        if path.is_file():
            self.values = json.loads(path.read_text(encoding="utf-8"))
            same = ("gpu", "engine", "dry_run")
            there = self.values["about"]
            if any(there[key] != about[key] for key in same):
                raise SystemExit(
                    f"--out: {path} has results of {[there[key] for key in same]}, and this is "
                    f"{[about[key] for key in same]}: name another file"
                )

    def part(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.values["parts"].setdefault(name, {"done": False, "found": {}})
        return found

    def write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_name(self._path.name + ".part")
        draft.write_text(json.dumps(self.values, indent=1) + "\n", encoding="utf-8")
        draft.replace(self._path)


def gpu_name() -> str | None:
    """Name and driver of the first GPU; None where there is none."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    return lines[0] if lines else None


def install(wheels: Path, site: Path) -> None:
    """Install all wheels of a folder into another, from nowhere else."""
    found = sorted(map(str, wheels.glob("*.whl")))
    if not found:
        raise SystemExit(f"--wheels: there is no wheel in {wheels}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-compile", "--upgrade", "--target", str(site), *found]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(f"--wheels: pip cannot install {' '.join(found)}")


def environment(site: Path | None, places: list[str]) -> dict[str, str]:
    """What a part's process is told: the checkout, the installed wheels, and CUDA's libraries.

    ONNX Runtime looks for those beside itself, and they are where pip has put them with PyTorch.

    Args:
        site: folder of the installed wheels.
        places: folders of packages.
    """
    libraries = [str(one) for place in places for one in sorted(Path(place).glob("nvidia/*/lib"))]
    found = dict(os.environ)
    for name, ours in (
        ("PYTHONPATH", [str(HERE.parent), *([str(site)] if site else [])]),
        ("LD_LIBRARY_PATH", libraries),
    ):
        theirs = [one for one in os.environ.get(name, "").split(os.pathsep) if one]
        found[name] = os.pathsep.join([*ours, *theirs])
    return found


class Runner:
    """Runs functions of gpu_parts.py in processes that are stopped when their time is up."""

    def __init__(self, settings: dict[str, Any], site: Path | None, deadline: float) -> None:
        self._settings = settings
        self.deadline = deadline
        self._environment = environment(site, sys.path)
        if settings["dry_run"]:  # whose products are too small to share
            self._environment["OMP_NUM_THREADS"] = "1"

    def start(self, kind: str, **more: Any) -> subprocess.Popen[str]:
        settings = json.dumps({**self._settings, **more})
        return subprocess.Popen(
            [sys.executable, str(HERE / "gpu_parts.py"), kind, settings],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=self._environment,
        )

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def run(self, part: Part, results: Results) -> None:
        """Run a part, noting what it finds as it finds it, and how it ends."""
        entry = results.part(part.name)
        entry.pop("error", None)
        start = time.monotonic()
        until = min(start + part.seconds, self.deadline)
        process = self.start(part.kind, size=part.size, found=sorted(entry["found"]))
        lines, errors = _Lines(process.stdout), _Lines(process.stderr)
        try:
            for line in lines.until(until):
                found = json.loads(line)
                entry["found"][found["key"]] = found["value"]
                print(f"{part.name}: {line.strip()}", flush=True)
                results.write()
        finally:
            if not lines.ended:  # time is up, or this process is to end
                process.kill()
            status = process.wait()
        said = errors.last()
        if not lines.ended:
            entry["error"] = f"stopped after {time.monotonic() - start:.0f} seconds; {said}"
        elif status:
            entry["error"] = f"exit code {status}; {said}"
        entry["done"] = "error" not in entry
        entry["seconds"] = round(time.monotonic() - start, 1)
        entry["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        if "error" in entry:
            print(f"{part.name}: {entry['error']}", flush=True)
        results.write()

    def export(self, wanted: list[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """Make the exports that are not there yet, side by side; return what went wrong."""
        running = {one: self.start("export", size=one[0], precision=one[1]) for one in wanted}
        failed = {}
        for one, process in running.items():
            try:
                _, said = process.communicate(timeout=max(self.left(), 0.1))
                if process.returncode:
                    failed[one] = said.strip().rpartition("\n")[2]
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                failed[one] = "no time was left"
        return failed


class _Lines:
    """Lines of a pipe, read by a thread, so that waiting for one can end."""

    def __init__(self, pipe: Any) -> None:
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._pipe = pipe
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self._last = "it said nothing"
        self.ended = False

    def _read(self) -> None:
        for line in self._pipe:
            self._queue.put(line)
            if line.strip():
                self._last = line.strip()
        self._queue.put(None)

    def until(self, moment: float) -> Any:
        """Lines until the end, or until a moment of time.monotonic()."""
        while True:
            try:
                line = self._queue.get(timeout=max(moment - time.monotonic(), 0))
            except queue.Empty:
                return
            if line is None:
                self.ended = True
                return
            yield line

    def last(self) -> str:
        self._thread.join(5)
        return self._last


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON; what it has is not redone")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install first")
    parser.add_argument("--work", type=Path, default=Path("build/gpu"), help="for exports")
    parser.add_argument("--engine", choices=PRECISIONS, default="onnxruntime")
    parser.add_argument("--sizes", nargs="+", default=["350M", "2B"], help="of the models")
    parser.add_argument("--minutes", type=float, default=9, help="for all of it")
    parser.add_argument("--only", nargs="+", metavar="PART", help='such as "speed 2B"')
    parser.add_argument("--dry-run", action="store_true", help="a tiny model, on the CPU")
    options = parser.parse_args()
    deadline = time.monotonic() + 60 * options.minutes
    gpu = "none: dry run" if options.dry_run else gpu_name()
    if gpu is None:
        raise SystemExit("nvidia-smi shows no GPU here; --dry-run does without")
    about = {
        "date": datetime.date.today().isoformat(),
        "gpu": gpu,
        "engine": options.engine,
        "dry_run": options.dry_run,
        "python": platform.python_version(),
    }
    results = Results(options.out, about)
    work, site = options.work.resolve(), None
    work.mkdir(parents=True, exist_ok=True)
    sizes = [DRY_SIZE] if options.dry_run else options.sizes
    # Without a GPU, Paddle builds no graph in float16.
    half = "fp32" if options.dry_run and options.engine == "paddle" else "fp16"
    outstanding = [
        part
        for part in parts(options.engine, sizes, half)
        if not results.part(part.name)["done"] and part.name in (options.only or [part.name])
    ]
    if not outstanding:
        print(f"{options.out} has all of it")
        return
    if options.wheels:
        site = work / "site"
        install(options.wheels, site)
    settings = {"engine": options.engine, "dry_run": options.dry_run, "work": str(work)}
    settings["half"] = half
    runner = Runner(settings, site, deadline)
    wanted = {(one.size, precision) for one in outstanding for precision in one.precisions}
    missing = sorted(one for one in wanted if one[0] and not _export(work, options.engine, *one))
    failed = runner.export(missing)  # type: ignore[arg-type]
    for (size, precision), said in failed.items():
        print(f"export {size} {precision}: {said}", flush=True)
    results.part("exports")["errors"] = {" ".join(one): said for one, said in failed.items()}
    results.write()
    for part in outstanding:
        if runner.left() > 0:
            runner.run(part, results)
        else:
            results.part(part.name)["error"] = "no time was left: begin again"
            results.write()
    undone = [part.name for part in outstanding if not results.part(part.name)["done"]]
    if undone:
        raise SystemExit(f"not done: {', '.join(undone)}; {options.out} says why")


def _export(work: Path, engine: str, size: str, precision: str) -> bool:
    """Whether an export is there: it got its name when it was whole."""
    return (work / f"{engine}-{size}-{precision}").is_dir()


if __name__ == "__main__":
    main()
