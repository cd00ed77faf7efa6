"""kv_cache_bytes: who does not fit waits or is set back, and no text changes by that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.decoding.admission import Admission, Start
from paddlenlp_codegen_task.decoding.events import Forward
from paddlenlp_codegen_task.runtime import device

TOKEN = 8 * 8 * 256 * 17 // 16  # bytes of a token of the built-in model: 16 buffers, and one more
PROMPTS = [f"def function_{n}(first, second):\n" + f"    x = {n}\n" * (3 * n) for n in range(9)]
OPTIONS: dict[str, Any] = {"max_length": 100, "ignore_eos": True, "truncation": None, "seed": 5}
OPTIONS["prompt_lookup"] = False


def load(home_path: Path, **options: Any) -> CodeGenerator:
    return CodeGenerator.from_pretrained(
        "builtin", home_path=home_path, device="cpu", num_threads=1, **options
    )


@pytest.mark.parametrize("engine", ["onnxruntime", "paddle"])
@pytest.mark.parametrize("prefix_cache_bytes", [0, 50_000_000])
def test_a_tight_budget_changes_no_text(
    home_path: Path, set_back: list[Start], engine: str, prefix_cache_bytes: int
):
    check_tight(home_path, set_back, engine=engine, prefix_cache_bytes=prefix_cache_bytes)


def test_a_tight_budget_changes_no_text_in_int8(home_path: Path, set_back: list[Start]):
    check_tight(home_path, set_back, precision="int8")


@pytest.fixture
def set_back(monkeypatch: pytest.MonkeyPatch) -> list[Start]:
    """Whatever is set back."""
    found: list[Start] = []
    plain = Admission.set_back

    def watched(self: Admission, start: Start) -> None:
        found.append(start)
        plain(self, start)

    monkeypatch.setattr(Admission, "set_back", watched)
    return found


def check_tight(home_path: Path, set_back: list[Start], **options: Any) -> None:
    budget = 620 * TOKEN  # about three of the nine, as they end
    with (
        load(home_path, batch_size=9, **options) as roomy,
        load(home_path, batch_size=9, kv_cache_bytes=budget, **options) as tight,
    ):
        expected = [roomy.generate(prompt, **OPTIONS)[0] for prompt in PROMPTS]
        largest: list[int] = []
        cache = tight._model.runtime.cache

        def note(_: Forward) -> None:
            largest.append(cache.bytes(cache.slots, cache.capacity))

        tight.add_step_hook(note)
        assert tight.generate(PROMPTS, **OPTIONS) == expected
    assert 0 < max(largest) <= budget
    assert any(start.rows[0].token_ids for start in set_back)


def test_what_can_never_fit_is_refused_before_anything_runs(home_path: Path):
    with load(home_path, kv_cache_bytes=300 * TOKEN) as generator:
        steps: list[Forward] = []
        generator.add_step_hook(steps.append)
        message = (
            r"^prompt 1 with max_length 200 comes to \d{3} tokens, whose keys and values take "
            r"[\d,]+ bytes, and kv_cache_bytes allows 5,222,400: shorten it, lower max_length, or "
            "load with a larger kv_cache_bytes$"
        )
        with pytest.raises(ValueError, match=message):
            generator.generate(["x", "x = 1\n" * 60], max_length=200)
        with pytest.raises(ValueError, match="tokens in 4 beams, whose"):
            generator.stream("x", decode_strategy="beam_search", max_length=90)
        assert not steps
        assert generator.generate("x", max_length=4)


@pytest.mark.parametrize(("free", "expected"), [(10_000_001, 5_000_000), (None, None)])
def test_the_default_is_half_of_what_is_free(
    home_path: Path, monkeypatch: pytest.MonkeyPatch, free: int | None, expected: int | None
):
    asked: list[int | None] = []

    def free_bytes(device_id: int | None) -> int | None:
        asked.append(device_id)
        return free

    monkeypatch.setattr(device, "free_bytes", free_bytes)
    with load(home_path) as generator:
        assert generator._model.runtime.cache.max_bytes == expected
    assert asked == [None]


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_it_is_checked(home_path: Path, value: Any, error: type[Exception]):
    with pytest.raises(error, match="kv_cache_bytes must be"):
        load(home_path, kv_cache_bytes=value)
