"""A mean of a trained checkpoint's weights and those of the packaged model it went on from.

Training on rearranged windows costs some of what the model knew of ordinary text; a mean of the
weights before and after keeps that, and most of what was learnt (https://arxiv.org/abs/2109.01903).
Tokens that infilling adds had no meaning before: their rows are those of the trained side. Halfway,
the inner layers say less clearly that a middle ends, so `--raise-end` makes the token that ends it
likelier everywhere. Writes a checkpoint that refine.py and package.py read.
"""

import argparse
from pathlib import Path

import torch
from model import Shape
from train import packaged, save, share_of

from paddlenlp_codegen_task.model.infilling import END_OF_MIDDLE, SEPARATOR, SUFFIX_FIRST
from paddlenlp_codegen_task.model.tokenizer import Tokenizer

OF_TOKENS = ("wte.weight", "lm_head.weight", "lm_head.bias")  # a row a token


def mean(
    before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], share: float, new: list[int]
) -> dict[str, torch.Tensor]:
    """Weights `share` of the way from `before` to `after`; rows of tokens in `new` as after."""
    found = {}
    for name, trained in after.items():
        trained = trained.float()
        found[name] = torch.lerp(before[name].float(), trained, share)
        if name in OF_TOKENS:
            found[name][new] = trained[new]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="checkpoint.pt of train.py")
    parser.add_argument("packaged", type=Path, help="folder of the model that it went on from")
    parser.add_argument("data", type=Path, help="folder of tokenizer.py")
    parser.add_argument("out", type=Path, help="the checkpoint to write")
    parser.add_argument("--share", type=share_of, default=0.6, help="of the trained weights")
    parser.add_argument(
        "--raise-end", type=float, default=0.0, metavar="NATS", help="added to the bias of <eom>"
    )
    options = parser.parse_args()

    state = torch.load(options.checkpoint, weights_only=True)
    before, _ = packaged(options.packaged, Shape(**state["shape"]))
    tokenizer = Tokenizer.from_folder(options.data)
    ids = map(tokenizer.token_id, (SUFFIX_FIRST, SEPARATOR, END_OF_MIDDLE))
    new = [token_id for token_id in ids if token_id is not None]
    weights = state["weights"] = mean(before, state["weights"], options.share, new)
    end = tokenizer.token_id(END_OF_MIDDLE)
    if end is not None:
        weights["lm_head.bias"][end] += options.raise_end
    save(options.out, state)


if __name__ == "__main__":
    main()
