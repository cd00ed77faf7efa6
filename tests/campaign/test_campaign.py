"""Some attacks of each kind, and what counts and judges them."""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from . import driver, worker
from .driver import KINDS, Campaign, Tally, draw, replay
from .hostile_values import (
    ANYTHING,
    GENERATION,
    LOADING,
    draw_value,
    evaluated,
    must_be_refused,
)
from .outcomes import Failure, one_line
from .worker import Attacked, Worker

# How many of each kind. They are the same ones every time, so that more of them find nothing that
# they have not found before: that is what `make campaign` is for, and its finds are kept below.
ATTACKS = {"kills": 6, "flips": 60, "taskflow": 6, "disks": 12, "downloads": 2}
EXAMPLES = {"options": 150, "pickles": 40, "texts": 25}

attacked = settings(
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# Hypothesis makes what fails smaller, as far as the draws of a kind are its own.
randoms = st.randoms(use_true_random=False)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Worker]]:
    """Workers, one a kind."""
    started: dict[str, Worker] = {}

    def start_one(kind: str) -> Worker:
        if kind not in started:
            started[kind] = Worker(kind, tmp_path_factory.mktemp(kind))
        return started[kind]

    yield start_one
    for one in started.values():
        one.close()


# Inputs that once failed, in the form that `draw` gives them.
ONCE_FAILED: list[tuple[str, dict[str, Any]]] = [
    *(
        ("flips", {"target": "onnxruntime-fp32", "how": "stray", "large": True, "stray": stray})
        for stray in ("tokenizer.json", "added_tokens.json", "stray")
    ),
    # A frame's length, which pickle minds, and a weight.
    ("flips", {"target": "paddle4", "how": "flips", "places": [5, 33_361_671], "bit": 6}),
    ("taskflow", {"options": {"is_static_model": "True"}, "call": {}, "prompts": "'x'"}),
    ("disks", {"work": "onnxruntime", "obstacle": "bytes", "amount": 1030, "late": True}),
    ("disks", {"work": "onnxruntime", "obstacle": "length", "amount": 100, "late": True}),
    ("disks", {"work": "paddle", "obstacle": "bytes", "amount": 3521, "late": True}),
    ("disks", {"work": "paddle", "obstacle": "names", "amount": 11, "late": True}),
    *(
        ("pickles", {"sort": "bomb", "program": program})
        for program in [
            [["fQ==", 1], ["fV1dYQ==", 750_000], ["fQ==", 3_000_000], ["dC4=", 1]],
            [["KCgoKA==", 1], ["XYWU", 1_000_000], ["lf//////////Tg==", 300_000], ["ZS4=", 1]],
            [["XXEA", 1], ["SwFh", 1_000_000], ["jAFhXWgAYQ==", 428_571], ["US4=", 1]],
            [["KXEA", 1], ["XZQ=", 1_500_000], ["US4=", 1]],
        ]
    ),
    *(
        ("options", {"face": face, "options": {name: value}})
        for face, name, value in [
            ("load", "draft_model", "'file'"),
            ("load", "draft_model", "'.'"),
            ("load", "draft_model", "'../home-2'"),
            ("load", "home_path", "'loop/x'"),
            ("load", "home_path", "'/proc/nothing'"),
            ("load", "truncation", "'a' * 100_000"),
            ("config", "truncation", "[str(n) for n in range(20_000)]"),
            ("config", "truncation", "'[[a]'"),
            ("config", "suppress_tokens", "itertools.repeat(1)"),
            ("config", "num_return_sequences", "[LongRepr()] * 100"),
            ("config", "ignore_eos", "10**5000"),
        ]
    ),
    (
        "texts",
        {"truncation": None, "stop": ["$"], "many": 20_000, "completion": [["x{", 50_000]]},
    ),
]


@pytest.mark.parametrize(("kind", "made"), ONCE_FAILED)
def test_what_once_failed(kind: str, made: dict[str, Any], start: Callable[[str], Worker]) -> None:
    also = {
        "flips": {"file": 0, "places": [0], "bit": 0, "by": "from_pretrained"},
        "texts": {"prompt": [], "step": 1000},
    }
    start(kind).attack({**also.get(kind, {}), **made})


@pytest.mark.parametrize("kind", ATTACKS)
def test_attacks_by_seeds(kind: str, start: Callable[[str], Worker]) -> None:
    for number in range(ATTACKS[kind]):
        made = draw(kind, 0, number)
        assert json.loads(json.dumps(made)) == made == draw(kind, 0, number)
        start(kind).attack(made)
    start(kind).close()  # some hold much memory


@settings(attacked, max_examples=EXAMPLES["options"])
@given(randoms)
def test_options(start: Callable[[str], Worker], random: Random) -> None:
    _attack(start, "options", random)


@settings(attacked, max_examples=EXAMPLES["pickles"])
@given(randoms)
def test_pickles(start: Callable[[str], Worker], random: Random) -> None:
    _attack(start, "pickles", random)


@settings(attacked, max_examples=EXAMPLES["texts"])
@given(randoms)
def test_texts(start: Callable[[str], Worker], random: Random) -> None:
    _attack(start, "texts", random)


def _attack(start: Callable[[str], Worker], kind: str, random: Random) -> None:
    start(kind).attack(importlib.import_module(f".{kind}", __package__).draw(random))


# What judges


@pytest.mark.parametrize("message", ["", " ", "two\nlines", "two\x0blines", "x" * 3000])
def test_what_is_no_line_that_explains(message: str) -> None:
    with pytest.raises(Failure):
        one_line(ValueError(message))


def test_a_refusal_names_an_option() -> None:
    assert one_line(ValueError("top_k must be"), ["top_k", "seed"]) == "top_k must be"
    with pytest.raises(Failure, match="names none"):
        one_line(ValueError("top_k must be"), ["top_p"])


def test_values_are_refused_for_what_they_are() -> None:
    for name in [*GENERATION, *LOADING]:
        for expression in {draw_value(Random(seed), name) for seed in range(300)} | {*ANYTHING}:
            assert must_be_refused(name, evaluated(expression)) in (True, False)
    for name, value, refused in [
        ("max_length", True, True),
        ("max_length", 3, False),
        ("max_length", evaluated("np.int64(2)"), False),
        ("top_p", 2.0, True),
        ("top_p", evaluated("np.float32('nan')"), True),
        ("static_mode", "no", True),
        ("static_mode", False, False),
        ("engine", "int8", True),
        ("seed", None, False),
        ("top_k", None, True),
    ]:
        assert must_be_refused(name, value) is refused, (name, value)


# What runs


HANGS = {"truncation": "(a+)+b", "stop": [], "completion": [["a", 60]], "prompt": [], "step": 9}
FAILS = {"truncation": "(", "stop": [], "completion": [], "prompt": [], "step": 9}
WORKS = {"truncation": "x", "stop": [], "completion": [["a", 9]], "prompt": [], "step": 9}


def test_a_worker_tells_of_errors_and_goes_on(tmp_path: Path) -> None:
    with Worker("texts", tmp_path) as one:
        with pytest.raises(Attacked, match="Traceback"):
            one.attack(FAILS)
        assert one.attack(WORKS) == {"worked": 1}


def test_a_worker_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "GRACE", 0.0)
    with Worker("texts", tmp_path) as one:
        one.limit = 1.0
        with pytest.raises(Attacked, match="no answer in 1 s"):
            one.attack(HANGS)
        assert one.attack(WORKS) == {"worked": 1}


def test_a_worker_that_is_killed_says_so(tmp_path: Path) -> None:
    with Worker("texts", tmp_path) as one:
        one.start()
        assert one._process is not None
        threading.Timer(0.5, one._process.kill).start()
        with pytest.raises(Attacked, match="died, with status -9"):
            one.attack(HANGS)


def test_a_campaign_counts_keeps_what_fails_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def draw_third(kind: str, seed: int, number: int) -> dict[str, object]:
        return FAILS if number == 2 else WORKS

    monkeypatch.setattr(driver, "draw", draw_third)
    monkeypatch.setattr(driver, "floor_of", lambda kind: 5)
    first = Campaign(tmp_path, 7, ("texts",), floors=True)
    first.run(0.0, 1)
    assert first.tally.of("texts") == {"worked": 4, "failures": 1}
    assert first.tally.failures == 1
    assert "FAILED: " in capsys.readouterr().out
    lines = first.tally.table(("texts", "flips")).splitlines()
    assert lines[0].split()[:3] == ["kind", "attacks", "floor"]
    assert lines[1].split()[:3] == ["texts", "5", "5"]
    (kept,) = tmp_path.glob("texts-7-*.json")
    assert "Traceback" in str(replay(kept, tmp_path))
    kept.write_text(json.dumps({"kind": "texts", "input": WORKS}), encoding="utf-8")
    assert replay(kept, tmp_path) is None

    monkeypatch.setattr(driver, "floor_of", lambda kind: 8)
    second = Campaign(tmp_path, 7, ("texts",), floors=True)
    second.run(0.0, 2)
    assert second.tally.of("texts") == {"worked": 7, "failures": 1}
    assert second.tally.next["texts"] == 8
    assert Tally.read(tmp_path / "tally.json", 8).attacks("texts") == 0


def test_every_module_of_attacks_is_run() -> None:
    files = Path(__file__).parent.glob("*.py")
    kinds = {path.stem for path in files if "\nclass Attacker" in path.read_text(encoding="utf-8")}
    assert kinds == {*KINDS} == {*ATTACKS, *EXAMPLES}
