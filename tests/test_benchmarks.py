"""Every script of benchmarks/ and examples/, on a tiny model, and what it makes of its results.

Times are not looked at, only what has to hold whatever they are.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import runpy
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from random_models import spread_tensors, write_model

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.finding import BUILTIN_FOLDER
from paddlenlp_codegen_task.model.checkpoint import open_checkpoint
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.tokenizer import Tokenizer
from paddlenlp_codegen_task.runtime import cpu

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = ("benchmarks", "training", "examples")
CONFIG = CodeGenConfig(
    vocab_size=257,
    n_positions=2048,
    n_embd=64,
    n_layer=1,
    n_head=4,
    rotary_dim=16,
    n_inner=128,
    eos_token_id=256,
)
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
    """Lets the scripts be imported, as they import one another."""
    for folder in (BENCHMARKS / "peers", BENCHMARKS):
        monkeypatch.syspath_prepend(str(folder))
    yield
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(BENCHMARKS):
            del sys.modules[name]


@pytest.fixture
def run(benchmarks: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a script as `python benchmarks/script` does."""

    def run(script: str, *arguments: object) -> None:
        path = str(BENCHMARKS / script)
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        runpy.run_path(path, run_name="__main__")

    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with CodeGen's context, so that the scripts' prompts fit, and a token a byte."""
    folder = tmp_path_factory.mktemp("tiny")
    write_model(folder, CONFIG, spread_tensors(CONFIG))
    (folder / "added_tokens.json").write_text("{}", encoding="utf-8")  # PaddleNLP's peer wants one
    return folder


def only_json(folder: Path) -> Any:
    """The results that a script wrote."""
    [path] = folder.glob("*.json")
    return json.loads(path.read_text(encoding="utf-8"))


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


def test_tables_of_a_run_of_one_task(benchmarks: None) -> None:
    import report

    values = results()
    for label, seconds in (("ours int8", 2.0), ("transformers fp32", 9.0), ("OpenVINO int8", 3.0)):
        values["systems"][label] = {"whole_1000": [{"total_seconds": seconds}] * 2}
    del values["systems"]["ours fp32"]
    text = report.tables(report.Results(values))
    assert "medians of 2 rounds" in text
    lines = [line for line in text.splitlines() if "1,000 tokens and 32 new" in line]
    assert lines[1].split(" | ")[1:3] == ["**1.50** (1.50 to 1.50)", "OpenVINO int8"]
    assert "prefill" not in text


def test_the_latest_run_of_each_kind(benchmarks: None, tmp_path: Path) -> None:
    import report

    paths = []
    for kind, date in (("A", "2026-03-01"), ("B", "2026-02-01"), ("A", "2026-01-01")):
        values = results()
        values["machine"] |= {"kind": kind, "date": date}
        paths.append(tmp_path / f"{date}.json")
        paths[-1].write_text(json.dumps(values), encoding="utf-8")
    for order in (paths, paths[::-1]):
        found = [(one.machine["kind"], one.machine["date"]) for one in report.latest(order)]
        assert found == [("A", "2026-03-01"), ("B", "2026-02-01")]


def test_prompts_keep_their_length(benchmarks: None) -> None:
    import compare

    tokenizer = Tokenizer.from_folder(BUILTIN_FOLDER)
    prompts = compare.make_prompts(tokenizer, 5, 16)
    assert len(set(prompts)) == 5
    assert {len(tokenizer.encode(prompt)) for prompt in prompts} == {16}
    with pytest.raises(SystemExit, match="too short for 2 prompts"):
        compare.make_prompts(tokenizer, 2, 1_000_000)


# Every script, once


def test_make_checkpoint_and_sizes(
    run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The size of both that is there to try them with."""
    run("make_checkpoint.py", tmp_path / "made", "--size", "tiny")
    config = CodeGenConfig.from_folder(tmp_path / "made")
    with open_checkpoint(tmp_path / "made") as made:
        made.check(config)
    assert Tokenizer.from_folder(tmp_path / "made").encode("    return")
    out = tmp_path / "sizes.json"
    run("sizes.py", "--work", tmp_path / "work", "--out", out, "--only", "tiny:int8", "tiny:fp32")
    entries = json.loads(out.read_text(encoding="utf-8"))["entries"]
    assert entries["tiny:fp32"]["generate"]["error_in_deviations"] < 1e-3
    assert 1e-3 < entries["tiny:int8"]["generate"]["error_in_deviations"] < 0.5
    assert entries["tiny:int8"]["export"]["bytes"] < entries["tiny:fp32"]["export"]["bytes"] / 3
    assert not list((tmp_path / "work").glob("tiny-*"))  # exports are large
    lines = capsys.readouterr().out.splitlines()
    table = [line.split(" | ")[:2] for line in lines if line.startswith("| ")]
    assert table[1:] == [["| tiny", "fp32"], ["| tiny", "int8"]]


def test_compare_and_report(
    run: Callable[..., None],
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    folders = ("--environments", tmp_path, "--work", tmp_path / "work", "--out", tmp_path)
    labels = ("ours int8", "ours fp32")
    run("compare.py", checkpoint, *folders, "--rounds", 1, "--threads", 1, "--only", *labels)
    values = only_json(tmp_path)
    assert list(values["systems"]) == list(labels)
    for tasks in values["systems"].values():
        assert set(tasks) >= {"cold_start", "batch_1", "batch_8", "batch_32", "context_1884"}
        [whole] = tasks["whole_1000"]
        assert whole["total_seconds"] > whole["prefill_seconds"] > 0
    size = {label: values["systems"][label]["bytes_a_token"] for label in labels}
    assert 0 < size["ours int8"] < size["ours fp32"]

    # As if two of others had been measured, and been as fast.
    for label in ("PaddleNLP fp32", "CTranslate2 int8"):
        values["systems"][label] = values["systems"]["ours fp32"]
    (tmp_path / "all.json").write_text(json.dumps(values), encoding="utf-8")
    of_another_kind = tmp_path / "another.json"
    values["machine"] |= {"kind": "abacus", "date": "2020-01-01"}
    of_another_kind.write_text(json.dumps(values), encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text("<!-- tables -->\n<!-- end of tables -->\n", encoding="utf-8")
    capsys.readouterr()
    paths = tmp_path / "all.json", of_another_kind
    run("report.py", *paths, "--pages", page, "--plots", tmp_path / "plots")
    text = capsys.readouterr().out.strip()
    kinds = [line.removeprefix("### ") for line in text.splitlines() if line.startswith("###")]
    assert kinds == [cpu.kind(cpu.flags(cpu.read())), "abacus"]
    assert text in page.read_text(encoding="utf-8")
    plots = {path.name for path in (tmp_path / "plots").iterdir() if path.stat().st_size}
    assert plots == {"decoding.svg", "contexts.svg", "prefill.svg"}


# The package that a peer cannot do without. `make benchmark` gives each an environment of its own;
# here they run where their package is in this one.
PEER_PACKAGES = {
    "ours": "onnxruntime",
    "paddlenlp_generate": "paddlenlp",
    "huggingface": "transformers",
    "ctranslate": "ctranslate2",
    "optimum_openvino": "optimum",
    "serve_ours": "fastapi",
    "serve_ctranslate": "ctranslate2",
    "serve_paddlenlp": "paddlenlp",
}
LABELS = re.findall(
    r'^    System\("(.+?)",', (BENCHMARKS / "compare.py").read_text(encoding="utf-8"), re.M
)


@pytest.fixture(scope="module")
def expected(checkpoint: Path, home_path: Path) -> Callable[..., list[list[int]]]:
    """The likeliest tokens after prompts, found once."""
    found: dict[tuple[Any, ...], list[list[int]]] = {}

    def expect(prompts: list[str], count: int) -> list[list[int]]:
        key = (*prompts, count)
        if key not in found:
            found[key] = greedy(checkpoint, home_path, prompts, count)
        return found[key]

    return expect


class InThisProcess:
    """A system's peer as a `compare.Worker`, without a process of its own."""

    def __init__(self, system: Any, checkpoint: Path, folder: Path) -> None:
        folder.mkdir()
        peer = importlib.import_module(system.peer)
        peer.prepare(checkpoint, folder, system.precision)
        self.model = peer.load(folder, system.precision, 1)

    def ask(self, prompts: list[str], new_tokens: int) -> dict[str, Any]:
        run = importlib.import_module("worker").Run(prompts, new_tokens)
        tokens = self.model.generate(run)
        found = {"prompt_tokens": run.prompt_tokens, "seconds": run.stamps}
        return {**found, "rows": run.rows, "tokens": tokens}


@pytest.fixture
def asked(benchmarks: None, checkpoint: Path, tmp_path: Path) -> Iterator[Callable[[Any], Any]]:
    """Starts a system, by its peer's command line if it is the first that this peer runs.

    Its others differ in a precision or an engine, and most of the time is that of an interpreter
    which imports PyTorch or Paddle, once to prepare and once to run.
    """
    import compare

    workers = []

    def ask(system: Any) -> Any:
        if system is not next(one for one in compare.SYSTEMS if one.peer == system.peer):
            return InThisProcess(system, checkpoint, tmp_path / "work")
        (tmp_path / system.environment).symlink_to(sys.prefix)
        folder = compare.prepare(system, checkpoint, tmp_path / "work", tmp_path)
        workers.append(compare.Worker(system, folder, 1, tmp_path))
        workers[0].start()
        return workers[0]

    yield ask
    for worker in workers:
        worker.stop()


@pytest.mark.parametrize("label", LABELS)
def test_every_system_of_the_comparison(
    asked: Callable[[Any], Any],
    checkpoint: Path,
    expected: Callable[..., list[list[int]]],
    label: str,
) -> None:
    """Each stamps a step a token, and fp32 gives the same tokens."""
    import compare

    [system] = [one for one in compare.SYSTEMS if one.label == label]
    package = PEER_PACKAGES[system.peer]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not in this environment")
    worker = asked(system)
    tokenizer = Tokenizer.from_folder(checkpoint)
    for count in (1, 20):  # 20 prompts of 16 tokens are more than one chunk of ours
        prompts = compare.make_prompts(tokenizer, count, 16)
        for new_tokens in (1, 5):  # a request follows another one
            answer = worker.ask(prompts, new_tokens)
            assert answer["prompt_tokens"] == [16] * count
            assert answer["seconds"] == sorted(answer["seconds"])
            if system.peer != "ours" or count == 1:
                assert answer["rows"] == [count] * new_tokens
            else:  # prompts of the first chunk are a token ahead, and end before the others
                late = sum(answer["rows"][1:])
                assert max(answer["rows"]) <= count
                assert count * (new_tokens - 2) < late <= count * (new_tokens - 1)
        assert [len(tokens) for tokens in answer["tokens"]] == [5] * count
        if "fp32" in system.precision:
            assert answer["tokens"] == expected(prompts, 5)


def test_ray_serve(run: Callable[..., None], tmp_path: Path) -> None:
    sizes = {"--replicas": 4, "--editors": 12, "--requests": 3, "--rooms": 12, "--characters": 500}
    run("ray_serve.py", *(one for pair in sizes.items() for one in pair), "--out", tmp_path)
    [file] = tmp_path.iterdir()
    written = json.loads(file.read_text(encoding="utf-8"))
    found = {one["routing"]: one for one in written["results"]}
    assert list(found) == ["random", "prompt", "session", "tree"]
    for one in found.values():
        assert 0 < one["hit_rate"] < 1
        assert 1 <= one["busiest_over_mean"] <= 4
    # Of three requests the last two can find what is there.
    assert found["random"]["hit_rate"] < found["session"]["hit_rate"] < 0.67
    assert found["random"]["hit_rate"] < found["prompt"]["hit_rate"]


def greedy(folder: Path, home_path: Path, prompts: list[str], count: int) -> list[list[int]]:
    """The likeliest tokens, as this package finds them one prompt at a time."""
    options: dict[str, Any] = {"home_path": home_path, "num_threads": 1, "precision": "fp32"}
    with CodeGenerator.from_pretrained(folder, **options) as generator:
        completions = generator.generate(
            prompts,
            batch_size=1,
            max_length=count,
            min_length=count,
            decode_strategy="greedy_search",
            repetition_penalty=1.0,
            truncation=None,
        )
    return [list(one.token_ids) for (one,) in completions]


def test_static_graph(run: Callable[..., None], checkpoint: Path, tmp_path: Path) -> None:
    run(
        "static_graph.py",
        checkpoint,
        *("--out", tmp_path, "--rounds", 1, "--starts", 1, "--new-tokens", 6),
    )
    results = only_json(tmp_path)
    assert results["batch_8"]["same_tokens"]
    assert results["batch_1_against_paddlenlp"]["same_tokens"]
    for name in ("host_greedy_1", "host_greedy_32", "host_sampling_1", "host_sampling_32"):
        assert 0 < results[name]["host_share"] < 1
    assert results["second_start"]["ready"] < results["second_start"]["first_token"]
    assert results["export"]["peak_bytes"] > results["export"]["checkpoint_bytes"]


def test_onednn(run: Callable[..., None], checkpoint: Path, tmp_path: Path) -> None:
    run("onednn.py", checkpoint, "--out", tmp_path, "--rounds", 1)
    results = only_json(tmp_path)
    assert set(results) == {"off", "oneDNN fp32", "oneDNN bf16"}
    assert results["off"]["same_tokens_of_32"] == 32


def test_decoding(
    run: Callable[..., None], checkpoint: Path, home_path: Path, tmp_path: Path
) -> None:
    run(
        "decoding.py",
        checkpoint,
        *("--out", tmp_path, "--home", home_path, "--rounds", 1),
        *("--groups", 2, "--longest", 40, "--new-tokens", 6),
    )
    results = only_json(tmp_path)
    batching = results["continuous_batching"]
    assert batching["same_texts"]
    assert batching["lengths"]["shortest"] < batching["lengths"]["longest"] <= 40
    assert batching["steps_if_slots_were_always_full"] <= batching["steps_in_groups"]
    for name in ("host_greedy_1", "host_greedy_32", "host_sampling_1", "host_sampling_32"):
        assert 0 < results[name]["host_share"] < 1


def test_prefix_cache(
    run: Callable[..., None], checkpoint: Path, home_path: Path, tmp_path: Path
) -> None:
    run(
        "prefix_cache.py",
        checkpoint,
        *("--out", tmp_path, "--home", home_path, "--rounds", 2),
        *("--precision", "fp32", "--prompt-tokens", 900),
    )
    results = only_json(tmp_path)
    places = [one for one in results.values() if isinstance(one, dict) and "range" in one]
    assert len(places) == 4
    assert all(one["same_first_tokens"] for one in places)


def test_speculation(
    run: Callable[..., None], checkpoint: Path, home_path: Path, tmp_path: Path
) -> None:
    code, out = tmp_path / "valid.jsonl", tmp_path / "speculation.json"
    source = (BENCHMARKS / "compare.py").read_text(encoding="utf-8")
    code.write_text(json.dumps({"kind": "module", "text": source}), encoding="utf-8")
    run(
        "speculation.py",
        checkpoint,
        *("--code", code, "--out", out, "--home", home_path, "--precision", "fp32"),
        *("--count", 3, "--repeats", 1, "--new-tokens", 24),
    )
    results = json.loads(out.read_text(encoding="utf-8"))
    for way in ("greedy", "sampling"):
        for kind, prompts in (("second halves", 3), ("typed", 8)):
            found = results[f"{way}, {kind}"]
            assert found["different_completions"] == 0
            assert (found["prompts"], found["tokens"]) == (prompts, 24 * prompts)
            assert set(found["accepted"]) <= {"2-gram", "4-gram", "6-gram"}
            assert all(0 < chance < 1 for chance in found["accepted"].values())
    assert results["greedy, second halves"]["accepted"]  # a tiny model repeats itself


def test_drafting(
    run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "drafting.json"
    run(
        "drafting.py",
        *("--work", tmp_path / "work", "--out", out),
        *("--only", "tiny:fp32", "--draft", "tiny:int8", "--new-tokens", 12),
    )
    results = json.loads(out.read_text(encoding="utf-8"))
    runs = results["pairs"]["tiny:fp32"]["runs"]
    assert list(runs) == ["0.0", "0.4", "0.6", "0.7", "0.8", "0.9", "1.0", "unrelated"]
    for one in runs.values():
        assert one["expected_ratio"] >= 1.0  # nothing need be drafted
    assert (runs["0.0"]["drafted_tokens_taken"], runs["1.0"]["drafted_tokens_taken"]) == (0, 1)
    # Trained logits are far apart, random ones are not.
    assert results["agreement"]["built-in, trained, fp32 and int8"] > 0.8
    assert not (tmp_path / "work").exists()  # exports are large
    assert capsys.readouterr().out.count("\n| ") == 11  # head and rule, chances, where it pays


def test_step_profile(
    run: Callable[..., None], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(
        "step_profile.py",
        checkpoint,
        *("--precisions", "int4", "int4+kv_int8", "--steps", 6),
        *("--work", tmp_path / "work", "--out", tmp_path / "out"),
    )
    results = only_json(tmp_path / "out")["results"]
    assert results["int4, 1"]["ms"]["MatMulNBits"] == results["int4, 1"]["products_ms"] > 0
    for one in results.values():
        assert one["ms"]["GroupQueryAttention"] > 0
        assert 0 < one["products_read"] < 1e12  # bytes a second
        assert one["taking_a_time_ms"] < 1
    assert capsys.readouterr().out.count("\n| int4") == len(results)
    assert "int4+kv_int8, 1" in results


def test_quality(
    run: Callable[..., None], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = tmp_path / "code"  # the same whatever becomes of the scripts
    code.mkdir()
    for name in "abcd":
        lines = [f"def {name}_{n}(x):\n    return x * {n} + {n * n}\n\n\n" for n in range(60)]
        (code / f"{name}.py").write_text("".join(lines), encoding="utf-8")
    run(
        "quality.py",
        checkpoint,
        *("--code", code, "--out", tmp_path, "--threads", 1),
        *("--windows", 3, "--context", 96, "--prompts", 2),
    )
    results = only_json(tmp_path)
    assert results["precisions"]["fp32"]["kl"] == 0
    assert results["precisions"]["fp32"]["all_equal"] == 1
    kl = {name: found["kl"] for name, found in results["precisions"].items()}
    # Of weights alone: how much activations lose is chance in a random model of few windows.
    assert 0 < kl["int8_weight_only"] < kl["int4"]
    assert kl["int8"] > kl["int8_weight_only"]
    assert 0 < kl["fp32, KV int8"] < kl["int4"]
    reaches = {one["room"]: one for one in results["kv"]}
    assert reaches[0.5]["at_ends"] > reaches[2.0]["at_ends"] >= reaches[4.0]["at_ends"]
    assert reaches[0.5]["kl"] > reaches[2.0]["kl"]
    assert len(results["int4"]) == 6
    assert set(results["outliers"]["factors"]) == {"1", "10", "30", "100"}
    assert set(results["layer"]) == {"6B", "16B"}
    tables = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ---")]
    assert len(tables) == 6


def test_kv_precision(
    run: Callable[..., None], checkpoint: Path, home_path: Path, tmp_path: Path
) -> None:
    run(
        "kv_precision.py",
        checkpoint,
        *("--precision", "fp32", "--out", tmp_path, "--home", home_path),
        *("--rounds", 1, "--longest", 300, "--threads", 1),
    )
    results = only_json(tmp_path)
    floats, few = results["auto"], results["int8"]
    assert floats["cache_bytes"]["128"] == 4 * few["cache_bytes"]["128"]
    assert set(floats["seconds"]) == {"decode_1_128", "decode_8_128", "prefill_128"}
    assert min(*floats["seconds"].values(), *few["seconds"].values()) > 0


def test_engine(
    run: Callable[..., None],
    checkpoint: Path,
    home_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = ("--size", 0.01, "--rounds", 1, "--threads", 1, "--home", home_path)
    tasks = ("generate", "stream", "call_64", "streams_64", "one_call_32", "calls_32", "mixed")
    out = tmp_path / "engine.json"
    run("engine.py", checkpoint, *small, "--requests", 5, "--budget", 4 << 20, "--out", out)
    results = json.loads(out.read_text(encoding="utf-8"))
    assert json.loads(capsys.readouterr().out) == results
    assert all(results[task]["ours"]["tokens_per_second"] > 0 for task in tasks)
    assert results["mixed"]["ours"]["longest_gap"] >= results["mixed"]["ours"]["median_gap"] > 0
    assert results["chunk_seconds"] > 0
    shares = [share for name, share in results.items() if name.startswith("host_")]
    assert len(shares) == 6
    assert all(0 < share < 1 for share in shares)
    assert results["memory"]["requests"] == 5

    base = ("--base", BENCHMARKS.parent, "--tasks", "generate", "mixed")
    run("engine.py", checkpoint, *small, *base, "--out", out)
    results = json.loads(out.read_text(encoding="utf-8"))
    for task in ("generate", "mixed"):
        assert set(results[task]) == {"ours", "base", "ratio", "ratio_range"}
        low, high = results[task]["ratio_range"]
        assert 0 < low <= results[task]["ratio"] <= high
    assert "memory" not in results


def test_start(run: Callable[..., None], tmp_path: Path) -> None:
    run("start.py", "--out", tmp_path, "--rounds", 1)
    results = only_json(tmp_path)
    assert results["CodeGenerator"]["text"] == results["Taskflow"]["text"] != ""
    assert results["Taskflow"]["processor_seconds"] > results["CodeGenerator"]["processor_seconds"]


def test_sandbox(run: Callable[..., None], tmp_path: Path) -> None:
    run("sandbox.py", "--out", tmp_path, "--rounds", 2)
    results = only_json(tmp_path)
    assert results["interpreter"]["beyond_the_interpreter"] == 0
    for name in ("namespaces_checked", "namespaces_printed"):
        if isinstance(results.get("namespaces"), str):
            continue  # which says why there are none
        assert results[name]["milliseconds"] > 0
        assert results[name]["programs_per_second"] > 0


def test_serve_and_its_report(run: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    folders = ("--environments", tmp_path, "--work", tmp_path / "work", "--out", tmp_path)
    parts = ("generate", "first_byte", "editor", "sweep", "overload")
    run("serve.py", "--small", *folders, "--threads", 1, "--parts", *parts[:2])
    run("serve.py", "--small", *folders, "--threads", 1, "--parts", *parts[2:])
    results = only_json(tmp_path)
    assert set(parts) < set(results)  # of both runs
    for part in parts:
        assert 0 < results[part]["client_share_of_a_core"] < 1
        assert -0.1 < results[part]["others_share_of_the_machine"] < 1
    generated = results["generate"]
    rates = [generated[f"{name}_tokens_per_second"] for name in ("ours", "generate")]
    assert generated["ratio"] == pytest.approx(rates[0] / rates[1])
    for part in (results["first_byte"]["1"], results["first_byte"]["32"]):
        assert 0 < part["beyond_engine_seconds"] < part["first_byte_seconds"]
        assert part["stream_first_text_seconds"] > 0
    in_turn = results["first_byte"]["32_in_turn"]
    assert in_turn["requests"] == results["first_byte"]["32"]["requests"]
    assert in_turn["spread_seconds"] > 0
    assert results["editor"]["keystrokes"] == {"with": 8, "without": 4}
    assert list(results["sweep"]["ours"]) == ["1", "4"]
    for point in results["sweep"]["ours"].values():
        assert 0 < point["first_byte_seconds"] <= point["seconds"] <= point["seconds_p95"]
    load = results["overload"]
    assert load["requests"] == load["accepted"] + load["refused"] + load["hung_up"]
    assert load["accepted"] > 0
    assert load["lost"] == load["other_answers"] == 0

    [path] = tmp_path.glob("serve-*.json")
    for other in ("ctranslate", "paddlenlp"):  # as if they had been measured
        values = {**generated, "peer_tokens_per_second": rates[1], "ratio": 7.654}
        results[other] = {**values, "ratio_range": [7, 8]}
    path.write_text(json.dumps(results), encoding="utf-8")
    pages = [tmp_path / "page.md", tmp_path / "page_cn.md"]
    for page in pages:
        page.write_text("<!-- tables -->\n<!-- end of tables -->\n", encoding="utf-8")
    run("serve_report.py", path, "--pages", *pages, "--plots", tmp_path / "plots")
    for page, word in zip(pages, ("keystroke", "客户端"), strict=True):
        text = page.read_text(encoding="utf-8")
        assert word in text
        assert text.count("**7.65** (7.00 to 8.00)") == 2
        assert len([line for line in text.splitlines() if line.startswith("| ")]) == 10
    plots = {one.name for one in (tmp_path / "plots").iterdir() if one.stat().st_size}
    assert plots == {"serve-throughput.png", "serve-latency.png"}


@pytest.mark.parametrize(
    ("peer", "label"),
    [
        ("serve_ours", "ours fp32"),
        ("serve_ctranslate", "CTranslate2 fp32"),
        ("serve_paddlenlp", "PaddleNLP fp32"),
    ],
)
def test_every_server_of_the_comparison(
    benchmarks: None, checkpoint: Path, home_path: Path, tmp_path: Path, peer: str, label: str
) -> None:
    """Each answers many clients with whole streams, and with the text that the model gives."""
    import servers

    if find_spec(PEER_PACKAGES[peer]) is None:
        pytest.skip(f"{PEER_PACKAGES[peer]} is not in this environment")
    for name in (".venv", ".venv-ctranslate"):
        (tmp_path / name).symlink_to(sys.prefix)
    folders = {"work": tmp_path / "work", "environments": tmp_path, "checkpoint": checkpoint}
    bench = servers.Bench(Namespace(threads=1, precision="fp32", **folders), servers.SMALL)
    try:
        server = bench.server(peer, label)
        prompts = bench.prompts(6)
        answers = server.load(prompts, 3)
        assert sorted(one.prompt for one in answers) == sorted(prompts)
        decode = Tokenizer.from_folder(checkpoint).decode
        expected = dict(zip(prompts, greedy(checkpoint, home_path, prompts, 4), strict=True))
        for one in answers:
            assert one.sent < one.first <= one.last
            assert "".join(one.texts) == decode(expected[one.prompt])
        assert len(server.load(bench.prompts(5), 3, enough=2)) == 2
    finally:
        bench.close()


CHUNK = b"%x\r\n%s\r\n"
EVENT = b'data: {"choices":[{"text":"a"}],"usage":{"completion_tokens":%d}}\n\n'
STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = EVENT % 4 + b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("said", "status", "is_whole"),
    [
        (STREAM + CHUNK % (len(DONE), DONE) + b"0\r\n\r\n", 200, True),
        (STREAM + b"".join(CHUNK % (1, bytes([c])) for c in DONE) + b"0\r\n\r\n", 200, True),
        (STREAM + CHUNK % (len(EVENT % 4), EVENT % 4) + b"0\r\n\r\n", 200, False),
        (STREAM + CHUNK % (len(EVENT % 4), EVENT % 4), 200, False),
        (STREAM + b"9\r\ndata", 200, False),
        (STREAM, 200, False),
        (b"", 0, False),
        (b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}", 429, False),
        (b"HTTP/1.1 500 Error\r\nContent-Length: 2\r\n\r\n{}", 500, False),
    ],
)
def test_what_a_client_takes_for_an_answer(
    benchmarks: None, said: bytes, status: int, is_whole: bool
) -> None:
    """An answer that is cut off anywhere, short or refused counts as what it is."""
    import servers
    import sse_client

    async def ask() -> Any:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(said)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await sse_client.Connection(port, "/", {}).ask("a")

    answer = asyncio.run(ask())
    assert answer.status == status
    assert servers.whole(answer, 4) == is_whole
    assert not servers.whole(answer, 5)


def test_what_is_missed_is_said(benchmarks: None) -> None:
    import serve

    results = {
        "generate": {"ratio": 0.95},
        "ctranslate": {"ratio": 1.2},
        "first_byte": {"1": {"beyond_engine_seconds": 0.003}},
        "overload": {"lost": 0, "memory_growth": 0.01, "other_answers": 1},
    }
    names = [line.split(":")[0] for line in serve.missed(results)]
    assert names == [
        "ctranslate.ratio",
        "first_byte.1.beyond_engine_seconds",
        "overload.other_answers",
    ]


def test_hello_world(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    """With the best model that is here: without a network that is the built-in one."""
    runpy.run_path(str(ROOT / "examples" / "hello_world.py"), run_name="__main__")
    assert "The small built-in model runs" in caplog.text
    assert capsys.readouterr().out.startswith("['\\n    ")


def test_every_script_is_run_by_a_test() -> None:
    """A script that no test runs is one that nobody notices to have stopped working."""
    tests = [*ROOT.glob("tests/*.py"), *ROOT.glob("tests/training/*.py")]
    text = "".join(path.read_text(encoding="utf-8") for path in tests)
    scripts = [path for folder in SCRIPTS for path in (ROOT / folder).rglob("*.py")]
    peers = BENCHMARKS / "peers"
    runnable = [path for path in scripts if '__name__ == "__main__"' in path.read_text("utf-8")]
    assert len(runnable) > 20
    for path in runnable:
        if path.parent == peers:
            assert path.stem in PEER_PACKAGES or f'"{path.stem}"' in text
        else:
            assert re.search(rf'["(]{re.escape(path.name)}"', text), f"no test runs {path.name}"


def test_no_two_scripts_have_one_name() -> None:
    """Each folder's scripts import one another by name, and the tests all of them."""
    names = [path.name for folder in SCRIPTS for path in (ROOT / folder).glob("*.py")]
    assert len(names) == len(set(names))
