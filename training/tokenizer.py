"""Train the byte-level BPE vocabulary, in CodeGenTokenizer's files, and encode the corpus with it.

The layout of the ids is CodeGen's own, with a smaller vocabulary: byte-level BPE, `<|endoftext|>`
as its last entry, then runs of 31 down to 2 spaces and of 9 down to 2 tabs as added tokens, and
then three for infilling.
"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

from paddlenlp_codegen_task.model.infilling import END_OF_MIDDLE, SEPARATOR, SUFFIX_FIRST

END_OF_TEXT = "<|endoftext|>"
BPE_ENTRIES = 8000
SAMPLE = 3  # the vocabulary is learnt from one document in so many: more change it little
BATCH = 1000  # documents encoded at a time
MODEL_MAX_LENGTH = 1024
WHITESPACE = [" " * n for n in range(31, 1, -1)] + ["\t" * n for n in range(9, 1, -1)]
INFILLING = [SEPARATOR, END_OF_MIDDLE, SUFFIX_FIRST]


def read_documents(file: Path) -> Iterator[dict[str, str]]:
    """Yield the documents of a file that corpus.py wrote."""
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def train(texts: Iterator[str]) -> Tokenizer:
    """Return a tokenizer whose model is a BPE of BPE_ENTRIES learnt from `texts`."""
    tokenizer = Tokenizer(BPE())
    # Runs of blanks are added tokens, which are cut out of a text before the BPE sees it: cut them
    # out here too, or entries would be spent on indentation that can never occur.
    tokenizer.pre_tokenizer = Sequence(
        [Split(Regex(r" {2,31}|\t{2,9}"), "removed"), ByteLevel(add_prefix_space=False)]
    )
    trainer = BpeTrainer(
        vocab_size=BPE_ENTRIES, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    found = tokenizer.get_vocab_size()
    if found != BPE_ENTRIES:  # every id behind them would be another one
        raise ValueError(f"the corpus is too small: {found} entries of {BPE_ENTRIES}")
    return tokenizer


def write_json(value: object, file: Path) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write vocab.json, merges.txt and the three files of special and added tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(folder))
    vocabulary: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    by_id = sorted(vocabulary, key=vocabulary.__getitem__)
    by_id.append(END_OF_TEXT)
    (folder / "vocab.json").write_text(
        json.dumps({token: n for n, token in enumerate(by_id)}, ensure_ascii=False),
        encoding="utf-8",
    )
    added = {token: len(by_id) + n for n, token in enumerate(WHITESPACE + INFILLING)}
    write_json(added, folder / "added_tokens.json")
    names = ("bos_token", "eos_token", "unk_token")
    write_json(dict.fromkeys(names, END_OF_TEXT), folder / "special_tokens_map.json")
    configuration = dict.fromkeys(names, END_OF_TEXT) | {
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": MODEL_MAX_LENGTH,
        "pad_token": None,
        "tokenizer_class": "CodeGenTokenizer",
    }
    write_json(configuration, folder / "tokenizer_config.json")


def load(folder: Path) -> Tokenizer:
    """Read the files back, for encoding: the same ids as transformers.CodeGenTokenizer gives.

    But for the names of the tokens for infilling, which are text like any other in a source file.
    """
    tokenizer = Tokenizer(BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    added = json.loads((folder / "added_tokens.json").read_text(encoding="utf-8"))
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken(run, normalized=False) for run in WHITESPACE])
    for run in WHITESPACE:
        if tokenizer.token_to_id(run) != added[run]:
            raise ValueError(
                f"added token {run!r} has id {tokenizer.token_to_id(run)}, not {added[run]}"
            )
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """Return the texts' ids, `<|endoftext|>` after each, as one uint16 array."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    ids: list[np.ndarray] = []
    for n in range(0, len(texts), BATCH):
        for one in tokenizer.encode_batch_fast(texts[n : n + BATCH], add_special_tokens=False):
            ids.append(np.array([*one.ids, end], dtype=np.uint16))
    return np.concatenate(ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("corpus", type=Path, help="folder that corpus.py wrote")
    parser.add_argument("out", type=Path, help="folder for the tokenizer and the encoded corpus")
    options = parser.parse_args()

    texts: dict[str, list[str]] = {"modules": [], "functions": [], "short": [], "valid": []}
    for document in read_documents(options.corpus / "train.jsonl"):
        texts["modules" if document["kind"] == "module" else "functions"].append(document["text"])
    for document in read_documents(options.corpus / "short.jsonl"):
        texts["short"].append(document["text"])
    for document in read_documents(options.corpus / "valid.jsonl"):
        if document["kind"] == "module":
            texts["valid"].append(document["text"])
    sample = (text for name in ("modules", "functions") for text in texts[name][::SAMPLE])
    save(train(sample), options.out)
    tokenizer = load(options.out)
    for name, part in texts.items():
        ids = encode(tokenizer, part)
        partial = options.out / f"{name}.bin.partial"
        ids.tofile(partial)
        os.replace(partial, options.out / f"{name}.bin")
        size = sum(len(text.encode("utf-8")) for text in part)
        print(f"{name}: {len(ids)} tokens, {size / len(ids):.3f} bytes a token")


if __name__ == "__main__":
    main()
