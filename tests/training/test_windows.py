"""What the model sees while it is trained."""

from __future__ import annotations

import numpy as np
from windows import END_OF_TEXT_ID, SHORT, Mixture, short_documents


def documents(*lengths: int) -> np.ndarray:
    """Documents of so many tokens with their end of text; document n consists of the id n."""
    parts = [[n] * (length - 1) + [END_OF_TEXT_ID] for n, length in enumerate(lengths)]
    return np.concatenate(parts).astype(np.uint16)


def test_short_documents():
    tokens = documents(SHORT, SHORT + 1, 2, SHORT + 300, 1)
    kept = short_documents(tokens)
    assert set(kept.tolist()) == {0, 2, END_OF_TEXT_ID}
    assert len(kept) == SHORT + 2 + 1


def test_a_mixture_goes_on_as_it_would_have():
    functions, modules = documents(*[100] * 60), documents(*[2000] * 5)
    one, other = (Mixture(functions, modules, seed=3) for _ in range(2))
    one.batch(4, 65, 0.5, short=False)
    other.batch(9, 33, 0.2, short=True)
    other.load(one.state())
    for share, short in ((0.5, False), (0.9, True)):
        left, right = one.batch(8, 65, share, short), other.batch(8, 65, share, short)
        assert left.equal(right)


def test_short_steps_show_only_short_functions():
    mixture = Mixture(documents(*[SHORT + 9, 50] * 40), documents(5000), seed=0)
    rows = mixture.batch(64, 40, 1.0, short=True)
    odd_or_end = (rows % 2 == 1) | (rows == END_OF_TEXT_ID)
    assert odd_or_end.all()
    assert not (mixture.batch(64, 40, 1.0, short=False) % 2 == 1).all()
