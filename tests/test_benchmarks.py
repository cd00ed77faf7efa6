"""The comparison's own machinery: asking a peer's process, prompts, and the tables."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
PEER = """
import sys
import worker

class Model:
    def generate(self, run):
        print("noise on standard output")
        if run.prompts[0] == "crash":
            sys.exit("peer: cannot go on")
        run.prompt_tokens = [len(prompt) for prompt in run.prompts]
        for _ in range(run.new_tokens):
            run.stamp()
        count = run.new_tokens - (run.prompts[0] == "short")
        return [list(range(count)) for _ in run.prompts]

worker.main(lambda *_: None, lambda *_: Model())
"""


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield
    for name in ("compare", "report"):
        sys.modules.pop(name, None)


@pytest.fixture
def peer(benchmarks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import compare

    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "fake.py").write_text(PEER, encoding="utf-8")
    shutil.copy(BENCHMARKS / "peers" / "worker.py", tmp_path / "peers")
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setattr(compare, "HERE", tmp_path)
    system = compare.System("fake fp32", "fake", "fp32", "env")
    worker = compare.Worker(system, tmp_path, 1, tmp_path)
    worker.start()
    yield worker
    worker.stop()


def test_a_peer_runs_only_while_it_is_asked(peer: Any) -> None:
    for prompts in (["a"], ["a", "b", "c"]):
        answer = peer.ask(prompts, 4)
        assert answer["tokens"] == [[0, 1, 2, 3]] * len(prompts)
        assert answer["seconds"] == sorted(answer["seconds"])
        assert answer["peak_bytes"] > 1_000_000
        _, status = os.waitpid(peer.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)


@pytest.mark.parametrize(
    ("prompt", "message"), [("short", "4 new tokens asked, got"), ("crash", "cannot go on")]
)
def test_a_peer_that_fails(peer: Any, prompt: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        peer.ask([prompt], 4)


def test_a_peer_that_reads_other_tokens(peer: Any) -> None:
    import compare

    found = compare.measure(peer, ["abcd", "efgh"], 4, 8, ["a"])
    assert found["tokens"] == [list(range(8))] * 2
    with pytest.raises(SystemExit, match=r"fake fp32 read other tokens: \[5\]"):
        compare.measure(peer, ["abcde"], 4, 8, ["a"])


def results() -> dict[str, Any]:
    def system(speed: float, seconds: float) -> dict[str, Any]:
        task = [
            {"prefill_seconds": seconds * n, "tokens_per_second": speed * n, "peak_bytes": 10**8}
            for n in (1, 2, 4)
        ]
        start = [{"first_token_seconds": seconds, "peak_bytes": 10**8}] * 3
        batches = {f"batch_{n}": task for n in (1, 8, 32)}
        contexts = {f"context_{n}": task for n in (128, 512, 1024, 1884)}
        return {"cold_start": start, **batches, **contexts}

    return {
        "machine": {"date": "2026-01-01", "cpu": "abacus", "threads": 2, "onnxruntime": "1"},
        "bandwidth": [1e10, 2e10, 3e10],
        "systems": {
            "ours int8": {**system(60, 0.5), "bytes_a_token": 100_000_000},
            "ours fp32": system(30, 1),
            "transformers fp32": system(10, 2),
            "OpenVINO int8": system(40, 1),
        },
    }


def test_tables(benchmarks: None, tmp_path: Path) -> None:
    import report

    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nstale\n{report.END}\nafter", encoding="utf-8")
    text = report.tables(report.Results(json.loads(json.dumps(results()))))
    report.write_into(page, text)
    report.write_into(page, text)
    content = page.read_text(encoding="utf-8")
    assert content.startswith("before\n")
    assert content.endswith("after")
    assert "stale" not in content
    rows = {line.split(" | ")[0].strip("| "): line for line in content.splitlines()}
    # int8 against the best of all, fp32 against the best in fp32; less is better for seconds.
    decode = next(line for line in content.splitlines() if line.startswith("| decode, batch 8"))
    assert "**1.50** (1.50 to 1.50) | **3.00**" in decode
    assert decode.endswith("| OpenVINO int8 | transformers fp32 |")
    assert "**2.00** (2.00 to 2.00) | **2.00**" in rows["prefill 512"]
    # 120 of the 200 tokens/s that 20 GB/s allow for 100 MB.
    assert any("| 100 | 200 | 60% |" in line for line in content.splitlines())


def test_prompts_keep_their_length(benchmarks: None) -> None:
    import compare

    from paddlenlp_codegen_task.loading import BUILTIN_FOLDER
    from paddlenlp_codegen_task.model.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(BUILTIN_FOLDER)
    prompts = compare.make_prompts(tokenizer, 5, 16)
    assert len(set(prompts)) == 5
    assert {len(tokenizer.encode(prompt)) for prompt in prompts} == {16}
