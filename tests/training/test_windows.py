"""What the model sees while it is trained."""

from __future__ import annotations

import numpy as np
from windows import END_OF_TEXT_ID, Mixture


def documents(*lengths: int) -> np.ndarray:
    """Documents of so many tokens with their end of text; document n consists of the id n."""
    parts = [[n] * (length - 1) + [END_OF_TEXT_ID] for n, length in enumerate(lengths)]
    return np.concatenate(parts).astype(np.uint16)


def test_a_mixture_goes_on_as_it_would_have():
    functions, short, modules = (documents(*[n] * (9000 // n)) for n in (100, 30, 2000))
    one, other = (Mixture(functions, short, modules, seed=3) for _ in range(2))
    one.batch(4, 65, 0.5, short=False)
    other.batch(9, 33, 0.2, short=True)
    other.load(one.state())
    for share, short in ((0.5, False), (0.9, True)):
        (left, even), (right, _) = (source.batch(8, 65, share, short) for source in (one, other))
        assert left.equal(right)
        assert (even == 1).all()


def test_short_steps_show_short_functions_from_their_beginning_and_no_others():
    functions, modules = (np.full(3000, token, np.uint16) for token in (5000, 6000))
    mixture = Mixture(functions, documents(*[50] * 80), modules, seed=0)
    rows, _ = mixture.batch(64, 40, 1.0, short=True)
    assert (rows < 80).all()  # 49 tokens of one document, from its first
    assert (rows == rows[:, :1]).all()
    assert (mixture.batch(64, 40, 1.0, short=False)[0] == 5000).all()
