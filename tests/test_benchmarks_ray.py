"""benchmarks/ray_batch.py, once and small: times are not looked at."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def test_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = str(BENCHMARKS / "ray_batch.py")
    small = ["--rows=150", "--kills=1", "--overhead-rows=60", "--rounds=1"]
    small += ["--workers", "2", "--rows-a-worker=100", "--step=0.001"]
    monkeypatch.setattr(sys, "argv", [script, f"--out={tmp_path}", *small])
    runpy.run_path(script, run_name="__main__")
    [path] = tmp_path.glob("*.json")
    found = json.loads(path.read_text(encoding="utf-8"))
    for kind in ("worker", "node", "driver"):
        one = found["kills"][kind]
        assert one["kills"] == 1
        assert (one["lines"], one["errors"]) == (150, 0)
        assert one["lines_as_without_ray"]
    assert found["overhead"]["rounds"][0]["ray"]["seconds"] > 0
    [run] = found["scaling"]
    assert (run["rows"], run["of_linear"]) == (200, 1)
    before = path.read_bytes()
    runpy.run_path(script, run_name="__main__")  # all parts are there
    assert path.read_bytes() == before


def test_what_is_missed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import ray_batch

    memory = "driver_bytes_at_a_tenth_half_and_nine_tenths"
    results = {
        "kills": {
            "worker": {"lines_as_without_ray": True, "errors": 0},
            "node": {"lines_as_without_ray": False, "errors": 0},
        },
        "overhead": {"steady_ratio": 1.2},
        "scaling": ray_batch.with_shares(
            [
                {"workers": 64, "rows_a_second": 256, memory: [100, 100, 100]},
                {"workers": 1, "rows_a_second": 5, memory: [100, 200, 300]},
            ]
        ),
    }
    assert [run["of_linear"] for run in results["scaling"]] == [1, 0.8]
    names = [line.split(":")[0] for line in ray_batch.missed(results)]
    assert names == ["kills.node", "overhead", "scaling.1", "scaling.64"]
    del sys.modules["ray_batch"], sys.modules["compare"]
