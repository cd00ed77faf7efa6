"""What is said of a processor's precisions is what was measured on its kind."""

from __future__ import annotations

import json
import logging
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.export.onnx_files import PHASES
from paddlenlp_codegen_task.runtime import cpu

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
MEASURED = {
    "AVX-512 with VNNI": "compare-2026-11-23.json",
    "AVX2": "compare-avx2-2026-11-26.json",
}


def test_the_factors_are_those_of_the_results() -> None:
    assert cpu.FASTEST_ALONE.keys() == MEASURED.keys()
    for kind, (precision, factor) in cpu.FASTEST_ALONE.items():
        systems = json.loads((RESULTS / MEASURED[kind]).read_text(encoding="utf-8"))["systems"]
        rates = {
            name.removeprefix("ours "): statistics.median(
                one["tokens_per_second"] for one in tasks["batch_1"]
            )
            for name, tasks in systems.items()
            if name.startswith("ours ")
        }
        for mixed in PHASES:  # whose steps are those of another precision
            rates.pop(mixed, None)
        assert max(rates, key=rates.__getitem__) == precision
        assert rates[precision] / rates["fp32"] == pytest.approx(factor, abs=0.06)


def test_auto_says_what_it_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for each export: later loads are nothing to speak of."""
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
    faster = "; int4 is about 4 times as fast as fp32 for one prompt at a time here"

    def load(**options: Any) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.INFO, "paddlenlp_codegen_task"):
            CodeGenerator.from_pretrained(
                "builtin", device="cpu", home_path=tmp_path, **options
            ).close()
        lines = [one for one in caplog.messages if one.startswith("exporting ")]
        shutil.rmtree(tmp_path / "taskflow")
        return [line.partition(" to a static graph ")[2] for line in lines]

    assert load() == ["in fp32, as PaddleNLP"]  # where nothing is known of the processor
    cpu.CPUINFO.write_text("flags\t: avx2 avx512f avx512_vnni\n", encoding="utf-8")
    assert load() == [f"in fp32, as PaddleNLP{faster}"]
    assert load(precision="fp32") == ["in fp32"]
