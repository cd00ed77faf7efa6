"""Windows rearranged for infilling: what `CodeGenerator.infill` asks for, made of training text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model import CodeGen, Shape
from rearranged import KINDS, MIDDLE_WEIGHT, Rearranged, hole_in
from windows import Mixture

from paddlenlp_codegen_task.model.infilling import Infilling
from paddlenlp_codegen_task.model.tokenizer import Tokenizer

TEXT = """\
def area(width, height):
    \"\"\"The area of a rectangle, été.\"\"\"
    if width < 0:
        raise ValueError("width")
    return width * height


def double(x):
    return 2 * x
"""


def documents(tokenizer: Tokenizer, *texts: str) -> np.ndarray:
    ids = [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in texts]
    return np.concatenate(ids).astype(np.uint16)


def middles(
    tokenizer: Tokenizer, ids: list[int], weights: list[float]
) -> list[tuple[str, str, str]]:
    """Read (before, middle, after) of every infilling of a window back."""
    names = Infilling.of(tokenizer)
    assert names is not None
    found, at = [], 0
    while names.hole in ids[at:]:
        begin, end = ids.index(names.hole, at), ids.index(names.end, at)
        separator = ids.index(names.separator, begin)
        assert separator < end
        middle = next(n for n in range(separator, end + 1) if weights[n] == MIDDLE_WEIGHT)
        parts = (ids[separator + 1 : middle], ids[middle:end], ids[begin + 1 : separator])
        texts = b"".join(map(tokenizer.token_bytes, parts[0] + parts[1])).decode()
        before, middle_text, after = map(tokenizer.decode, parts)
        assert before + middle_text == texts
        assert parts[2] == tokenizer.encode(after, allow_special=False)  # as infill encodes it
        apart = [tokenizer.encode(text, allow_special=False) for text in (before, middle_text)]
        together = tokenizer.encode(texts, allow_special=False)
        assert [parts[0], parts[1]] == apart or parts[0] + parts[1] == together
        found.append((before, middle_text, after))
        at = end + 1
    return found


def test_infillings_give_their_documents_back(tokenizer: Tokenizer) -> None:
    rearranged = Rearranged(tokenizer, np.random.default_rng(0))
    rearranged.span_length = lambda length: length  # type: ignore[method-assign]
    window = documents(tokenizer, *[TEXT] * 4)
    seen = set()
    for _ in range(60):
        ids, weights = rearranged.window(window)
        assert len(ids) == len(weights) == len(window)
        texts = middles(tokenizer, ids.tolist(), weights.tolist())
        assert [before + middle + after for before, middle, after in texts[:3]] == [TEXT] * 3
        seen.update(middle for _, middle, _ in texts)
    assert {"return 2 * x", "    return width * height", ""} < seen


def test_what_a_prompt_holds_is_not_learnt_and_the_middle_weighs_more(tokenizer: Tokenizer) -> None:
    ids, weights = Rearranged(tokenizer, np.random.default_rng(1)).window(
        documents(tokenizer, *[TEXT] * 4)
    )
    names = Infilling.of(tokenizer)
    assert names is not None
    tokens = ids.tolist()
    learnt, where = [], "after"
    for token, weight in zip(tokens, weights.tolist(), strict=True):
        if token in (names.hole, names.separator):
            assert weight == 0
            where = "after" if token == names.hole else "before"
            continue
        learnt.append((where, weight))
        where = "over" if token == names.end else where
    assert {weight for where, weight in learnt if where == "after"} == {1}
    # Nothing but the middle behind the separator, its end included.
    assert {weight for where, weight in learnt if where == "before"} == {0, MIDDLE_WEIGHT}
    assert tokens.count(names.end) == tokens.count(names.separator) > 1


def test_no_middle_ends_where_its_text_was_cut_off(tokenizer: Tokenizer) -> None:
    rearranged = Rearranged(tokenizer, np.random.default_rng(2))
    span = tokenizer.encode(TEXT + "last = [1, 2,")
    for _ in range(40):
        parts = rearranged.infill(span, False, 200)
        assert tokenizer.decode(parts[1][0]).endswith("last = [1, 2,")


def test_long_texts_lose_what_is_furthest_from_the_hole(tokenizer: Tokenizer) -> None:
    rearranged = Rearranged(tokenizer, np.random.default_rng(3))
    span = tokenizer.encode(TEXT)
    for _ in range(40):
        parts = rearranged.infill(span, True, len(span) - 10)
        assert sum(len(part) for part, _ in parts) <= len(span) - 10
        after, before, middle = (tokenizer.decode(parts[n][0]) for n in (1, 3, 4))
        assert f"{before}{after}{middle}"  # whatever was lost, something is left


@pytest.mark.parametrize("text", ["", "\n\n", "x", "é = 1\n", "    \n  y"])
def test_holes_lie_within_any_text(text: str) -> None:
    random = np.random.default_rng(4)
    for _ in range(20 * len(KINDS)):
        begin, end = hole_in(text, random)
        assert 0 <= begin <= end <= len(text)


def test_a_share_of_the_windows_goes_on_as_it_would_have(tokenizer: Tokenizer) -> None:
    tokens = documents(tokenizer, *[TEXT] * 60)
    one, other = (Mixture(tokens, tokens, tokens, 3, 0.5, tokenizer) for _ in range(2))
    one.batch(4, 65, 0.5, short=False)
    other.load(one.state())
    ids, weights = one.batch(64, 65, 0.5, short=False)
    assert all(map(torch.equal, (ids, weights), other.batch(64, 65, 0.5, short=False)))
    rearranged = (weights != 1).any(1).float().mean()
    assert 0.3 < rearranged < 0.7
    plain, even = Mixture(tokens, tokens, tokens, 3, 0.0, tokenizer).batch(8, 65, 0.5, False)
    assert (even == 1).all()
    assert plain.max() <= tokenizer.eos_token_id + 38


def test_rearranging_needs_the_tokens_for_it(tokenizer: Tokenizer) -> None:
    tokens = documents(tokenizer, TEXT)
    with pytest.raises(ValueError, match="with a tokenizer, and there is none"):
        Mixture(tokens, tokens, tokens, 3, 0.5)


def test_weights_of_a_loss() -> None:
    torch.manual_seed(0)
    model = CodeGen(Shape(vocab_size=32, n_embd=32, n_layer=1, n_head=2, rotary_dim=8))
    ids = torch.randint(32, (2, 9))
    weights = torch.ones(2, 9)
    assert model.loss(ids, weights).item() == pytest.approx(model.loss(ids).item(), rel=1e-5)
    weights[:, 5:] = 0
    assert model.loss(ids, weights).item() == pytest.approx(model.loss(ids[:, :5]).item(), rel=1e-5)
