"""benchmarks/keystroke.py: the session that is typed, the systems, what is kept of their times."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from random_models import spread_tensors, write_model

from paddlenlp_codegen_task.finding import BUILTIN_FOLDER
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.tokenizer import Tokenizer

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
# A token a byte, as the tokenizer has it, and CodeGen's context.
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
    def run(*arguments: object) -> None:
        path = str(BENCHMARKS / "keystroke.py")
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        runpy.run_path(path, run_name="__main__")

    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"), CONFIG, spread_tensors(CONFIG))


def test_the_session_is_typed_key_by_key(benchmarks: None) -> None:
    import typing_session

    tokenizer = Tokenizer.from_folder(BUILTIN_FOLDER)
    visits = typing_session.session(tokenizer, 300, 3, 60)
    assert visits == typing_session.session(tokenizer, 300, 3, 60)
    assert [visit.file for visit in visits] == list(typing_session.FILES) * 3
    assert [visit.first for visit in visits] == [True] * 3 + [False] * 6
    keys = [key for visit in visits for key in visit.keys]
    assert 0.05 < sum(key.whole for key in keys) / len(keys) < 0.3
    taken_back = 0
    for number, visit in enumerate(visits):
        above, own = visit.keys[: 0 if visit.first else 4], visit.keys[0 if visit.first else 4 :]
        assert 250 < len(tokenizer.encode(own[0].prompt)) < 700
        for one, after in pairwise(own):
            short, long = sorted((one.prompt, after.prompt), key=len)
            taken_back += one.prompt is long
            assert long.startswith(short)
            assert len(long) == len(short) + 1 or not long[len(short) + 1 :].strip(" ")
        if above:  # a word further up, which is there from then on
            assert above[-1].prompt == f"{above[0].prompt}ew_"
            assert own[0].prompt.startswith(above[-1].prompt)
            assert not visits[number - 3].keys[-1].prompt.startswith(above[-1].prompt)
    assert taken_back


def test_keystrokes(
    run: Callable[..., None],
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    pages = [tmp_path / "page.md", tmp_path / "page_cn.md"]
    for page in pages:
        page.write_text("a\n<!-- keystrokes -->\n<!-- end of keystrokes -->\nb", encoding="utf-8")
    small = ("--visits", 1, "--keys", 6, "--tokens", 150, "--threads", 1)
    folders = ("--environments", tmp_path, "--work", tmp_path / "work", "--out", tmp_path)
    arguments = (checkpoint, *small, *folders)
    run(*arguments, "--rounds", 1, "--precisions", "fp32")
    [path] = tmp_path.glob("keystroke-*.json")
    before = json.loads(path.read_text(encoding="utf-8"))
    assert "not installed" in before["systems"]["CTranslate2 int8"]["error"]
    assert "not installed" in before["systems"]["OpenVINO int8"]["error"]
    # One more round of a system that has one, and its first two of another.
    run(*arguments, "--rounds", 2, "--precisions", "fp32", "int8+kv_int8", "--pages", *pages)
    results = json.loads(path.read_text(encoding="utf-8"))
    session = results["session"]
    assert 18 <= session["keys"] <= 36
    for name in ("ours fp32", "ours int8, KV int8"):
        one = results["systems"][name]
        assert len(one["rounds"]) == 2
        assert one["opened_seconds_count"] == 2 * 3
        assert one["first_seconds_count"] == 2 * (session["keys"] - 3)
        for of in one["rounds"]:
            assert all(0 < seconds < 60 for seconds in of["first_seconds"])
            assert session["waited_for"] - 3 <= len(of["line_seconds"]) <= session["waited_for"]
        assert one["first_seconds"] <= one["first_seconds_p95"]
    old = results["systems"]["ours fp32"]["rounds"][0]
    assert old == before["systems"]["ours fp32"]["rounds"][0]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.startswith("a\n")
        assert text.endswith("\nb")
        assert [line for line in text.splitlines() if line.startswith("| ours int8, KV int8 | ")]

    capsys.readouterr()
    with pytest.raises(SystemExit, match="of another machine or session"):
        run(*arguments, "--rounds", 2, "--keys", 7)


def test_against_the_best_peer(benchmarks: None) -> None:
    import keystroke

    def system(*rounds: float) -> dict[str, Any]:
        each = [{"first_seconds": [x, 2 * x, 3 * x], "line_seconds": [4 * x]} for x in rounds]
        return {"rounds": each}

    found = {
        "ours int4": system(1, 2),
        "CTranslate2 int8": system(4, 4),
        "OpenVINO GenAI int8, prefix cache": {"rounds": [], "error": "no"},
        "OpenVINO int8": system(2),
    }
    ratios = keystroke.against_the_best(found)
    assert list(ratios) == ["ours int4"]
    for kind in ("first_seconds", "line_seconds"):
        assert ratios["ours int4"][kind]["ratio_range"] == [0.5, 0.5]
        assert ratios["ours int4"][kind]["ratio"] == 0.5


def test_one_system_stands_in_for_another(
    benchmarks: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And one that ends amid a round leaves the others to go on."""
    import keystroke

    broken = {"OpenVINO GenAI int8, prefix cache"}

    class Fake:
        def __init__(self, system: Any) -> None:
            self.name, self.found, self.visits = system.name, {"first_seconds": [1.0]}, 0

        def type(self, visit: Any, tokenizer: Any) -> None:
            self.visits += 1
            if self.name == "CTranslate2 int8" and self.visits == 2:
                raise keystroke.Cannot("gone")

        def stop(self) -> None:
            pass

    def started(system: Any, options: Any) -> Fake:
        if system.name in broken:
            raise keystroke.Cannot("no such model")
        return Fake(system)

    monkeypatch.setattr(keystroke, "started", started)
    visits = [Namespace(file=name) for name in "ab"]
    chosen = keystroke.systems(["int8"], 8)
    for error in ("no such model", None):
        found: dict[str, Any] = {}
        keystroke.run_round(chosen, visits, None, Namespace(), found)
        assert found["CTranslate2 int8"] == {"rounds": [], "error": "gone"}
        assert found["ours int8"]["rounds"] == [{"first_seconds": [1.0]}]
        genai = found["OpenVINO GenAI int8, prefix cache"]
        assert genai.get("error") == error
        assert ("OpenVINO int8" in found) is (error is not None)
        broken.clear()


# The package that each cannot do without; `make benchmark-keystroke` has environments for them.
PACKAGES = {
    "keystroke_ours": ("onnxruntime", "ours int8"),
    "keystroke_ctranslate": ("ctranslate2", "CTranslate2 int8"),
    "keystroke_openvino": ("optimum", "OpenVINO int8"),
    "keystroke_genai": ("openvino_genai", "OpenVINO int8"),
}


@pytest.mark.parametrize("peer", PACKAGES)
def test_every_system_that_is_typed_at(
    benchmarks: None, checkpoint: Path, tmp_path: Path, peer: str
) -> None:
    """Each says that there is more after each token, and can be left at any."""
    import compare
    import keystroke_worker

    package, label = PACKAGES[peer]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not in this environment")
    [system] = [one for one in compare.SYSTEMS if one.label == label]
    importlib.import_module(system.peer).prepare(checkpoint, tmp_path, system.precision)
    model = importlib.import_module(peer).load(tmp_path, system.precision, 1)
    text = "def f(x):\n    return x + 1\n" * 5
    for whole in (True, False, True):
        found = keystroke_worker.press(model, text, whole, 12, 0.0)
        assert found["prompt_tokens"] == len(text)
        assert 0 < found["first_seconds"] <= found["seconds"]
        text += "x"
