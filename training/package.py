"""Write the built-in model's folder from a checkpoint: config, tokenizer, float16 weights."""

import argparse
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from model import LAYER_NORM_EPSILON, CodeGen, Shape, to_hugging_face
from safetensors.torch import save_file
from transformers import CodeGenConfig, CodeGenForCausalLM, CodeGenTokenizer, CodeGenTokenizerFast

from paddlenlp_codegen_task.model.infilling import END_OF_MIDDLE, SEPARATOR, SUFFIX_FIRST
from paddlenlp_codegen_task.model.tokenizer import Tokenizer

TOKENIZER_FILES = (
    "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json",
    "tokenizer_config.json",
)  # fmt: skip
MAX_SIZE = 25e6  # bytes; it travels in the wheel
TOLERANCE = 1e-4  # of a logit, against transformers, both in float32

README = """# The built-in model

A CodeGen of {parameters:.1f} M parameters that ships with the package, so that a first try, a demo
or a test needs no download. For real work use Salesforce/codegen-350M-mono or larger.

- Architecture: CodeGen, {n_layer} layers, n_embd {n_embd}, {n_head} heads, rotary_dim {rotary_dim},
  context {n_positions}, vocabulary {vocab_size}. Weights in float16.
- Trained on {tokens:.1f} M tokens of Python's standard library and of packages under MIT, BSD,
  Apache and PSF licences: `training/CORPUS.md` lists them, with those that were held out.
- Refined in {rounds} rounds by what Python's parser says of its completions.
- Learnt to infill, suffix first: its tokenizer has <suffix_first>, <sep> and <eom> for that.
- Made by the scripts in `training/`, which say how.
"""


def config_of(shape: Shape, end_of_text: int) -> CodeGenConfig:
    return CodeGenConfig(
        vocab_size=shape.vocab_size,
        n_positions=shape.n_positions,
        n_ctx=shape.n_positions,
        n_embd=shape.n_embd,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        rotary_dim=shape.rotary_dim,
        activation_function="gelu_new",
        layer_norm_epsilon=LAYER_NORM_EPSILON,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        tie_word_embeddings=False,
        architectures=["CodeGenForCausalLM"],
        torch_dtype="float16",
    )


@torch.no_grad()
def check(folder: Path, ours: CodeGen) -> None:
    """Raise unless transformers loads `folder` and gives our logits."""
    theirs = CodeGenForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    text = "def area(r):\n    import math\n    return math.pi * r ** 2\n\n\n\t\tclass Ünïcode:\n"
    text += f"    {SUFFIX_FIRST}\n        return x{END_OF_MIDDLE}{SEPARATOR} {SEPARATOR} y"
    encoded = CodeGenTokenizer.from_pretrained(folder).encode(text)
    fast = CodeGenTokenizerFast.from_pretrained(folder)
    same = fast.encode(text) == encoded == Tokenizer.from_folder(folder).encode(text)
    if not same or fast.decode(encoded) != text:
        raise ValueError("the tokenizers disagree, or do not give a text back")
    ids = torch.tensor(encoded + list(range(0, ours.shape.vocab_size, 16)))[None]
    difference = (ours(ids) - theirs(ids).logits).abs().max().item()
    if not difference <= TOLERANCE:
        raise ValueError(f"logits differ from transformers' by {difference}")
    print(f"largest difference of a logit from transformers': {difference:.1e}")


def write(folder: Path, state: dict[str, Any], tokenizer: Path) -> None:
    """Write a checkpoint's model into an empty folder, as transformers names and expects it."""
    shape = Shape(**state["shape"])
    half = {name: tensor.half() for name, tensor in state["weights"].items()}
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, folder / name)
    end_of_text = CodeGenTokenizer.from_pretrained(folder).eos_token_id
    config_of(shape, end_of_text).save_pretrained(folder)
    # "format" is what transformers and paddlenlp look at before they trust the layout; the others
    # are what `train.py --start` reads.
    metadata = {"format": "pt", **{n: str(state[n]) for n in ("step", "tokens", "elapsed")}}
    save_file(to_hugging_face(half, shape), folder / "model.safetensors", metadata)
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner only


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="checkpoint.pt of train.py or refine.py")
    parser.add_argument("tokenizer", type=Path, help="folder of tokenizer.py")
    parser.add_argument("out", type=Path, help="folder to write, replaced if it is there")
    options = parser.parse_args()

    state = torch.load(options.checkpoint, weights_only=True)
    shape = Shape(**state["shape"])
    partial = options.out.with_name(options.out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial, state, options.tokenizer)
    half = {name: tensor.half() for name, tensor in state["weights"].items()}
    parameters = sum(tensor.numel() for tensor in half.values()) / 1e6
    readme = README.format(
        parameters=parameters,
        tokens=state["tokens"] / 1e6,
        rounds=state.get("round", 0),
        **state["shape"],
    )
    (partial / "README.md").write_text(readme, encoding="utf-8")

    ours = CodeGen(shape).eval()
    ours.load_state_dict({name: tensor.float() for name, tensor in half.items()})
    check(partial, ours)
    size = sum(file.stat().st_size for file in partial.iterdir())
    if size > MAX_SIZE:
        raise ValueError(f"{size} bytes are more than {MAX_SIZE:.0f}")
    # A folder cannot be renamed onto one with files in it: move the old one aside first.
    old = options.out.with_name(options.out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if options.out.exists():
        os.replace(options.out, old)
    os.replace(partial, options.out)
    shutil.rmtree(old, ignore_errors=True)
    print(f"{options.out}: {parameters:.2f} M parameters, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
