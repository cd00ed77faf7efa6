import codecs
import json
import random
import shutil
import sys
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlenlp_codegen_task.model.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
from codegen_tokenizer import END_OF_TEXT, WHITESPACE, write_codegen_tokenizer

STDLIB = Path(json.__file__).parents[1]
INSTALLED = Path(np.__file__).parents[1]
INCLUDE = Path(sysconfig.get_path("include"))
SOURCES = {
    "python": (STDLIB, "argparse.py"),
    "python, tests of encodings": (STDLIB, "encodings/idna.py"),
    "c header": (INCLUDE, "object.h"),
    "c header of numpy": (INSTALLED, "numpy/core/include/numpy/ndarrayobject.h"),
    "javascript": (INSTALLED, "sklearn/utils/_repr_html/estimator.js"),
    "javascript of matplotlib": (INSTALLED, "matplotlib/backends/web_backend/js/mpl.js"),
    "html": (INSTALLED, "matplotlib/backends/web_backend/all_figures.html"),
    "css": (INSTALLED, "matplotlib/backends/web_backend/css/page.css"),
    "shell": (STDLIB, "venv/scripts/common/activate"),
    "fish": (STDLIB, "venv/scripts/posix/activate.fish"),
}
MIXED = {
    "chinese markdown": "# 代码生成\n\n- 安装：`pip install`\n- 模型，参数（见表）\n\n"
    "```sh\nls '你好'\n```",
    "emoji": "x = '👩‍👩‍👧‍👦 🏳️‍🌈 é ﬁ İ'  # 1️⃣ ½ Ⅷ ٣",
    "tabs": "\n".join("\t" * n + "x" + "\t" * n for n in range(24)),
    "spaces": "\n".join(" " * n + "x" + " " * n for n in range(70)),
    "blanks mixed": "a \t \t\t  \t\t\t   b\n \n  \n\t\n \t\n   \t\t  ",
    "crlf": "def f():\r\n    return 1\r\n\r\n\r\n\tx\r\r\n",
    "control characters": "".join(map(chr, range(0x21))) + "\x7f\x80\x85\xa0\xad\u2028\ufeff\ufffd",
    "unicode blanks": "a\u3000\u3000b\u00a0\u00a0 c\u2003 \u200b d",
    "contractions": "it's we'll I'd 'RE 'S don''t ''''",
    "json": json.dumps({"a": [1, 2.5e-3, None, True], "键": "值\n"}, indent=4, ensure_ascii=False),
    "end of text": f"a{END_OF_TEXT}b {END_OF_TEXT} c\n  {END_OF_TEXT}  <|endoftext <|endoftext|",
    "nothing": "",
    "one blank": " ",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_codegen_tokenizer(tmp_path_factory.mktemp("codegen"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def peers(folder: Path):
    transformers = pytest.importorskip("transformers")
    return [
        transformers.CodeGenTokenizerFast.from_pretrained(str(folder)),
        transformers.CodeGenTokenizer.from_pretrained(str(folder)),
    ]


@pytest.mark.parametrize("name", SOURCES)
def test_source_files_as_transformers(tokenizer: Tokenizer, peers, name: str):
    root, path = SOURCES[name]
    if not (root / path).is_file():
        pytest.skip(f"{path} is not installed")
    text = (root / path).read_bytes().decode("utf-8")
    ids = tokenizer.encode(text)
    for peer in peers:
        assert ids == peer(text)["input_ids"]
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", MIXED)
def test_mixed_text_as_transformers(tokenizer: Tokenizer, peers, name: str):
    ids = tokenizer.encode(MIXED[name])
    for peer in peers:
        assert ids == peer(MIXED[name])["input_ids"]
    assert tokenizer.decode(ids) == MIXED[name].replace(END_OF_TEXT, "")


@settings(max_examples=500, deadline=None)
@given(
    text=st.one_of(
        st.text(),
        st.text(" \t\n\rx'<|汉"),
        st.lists(st.sampled_from([*MIXED.values()])).map("".join),
    )
)
def test_any_text_round_trips_and_encodes_as_transformers(tokenizer: Tokenizer, peers, text: str):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text.replace(END_OF_TEXT, "")
    assert ids == peers[0](text)["input_ids"]


@settings(max_examples=500, deadline=None)
@given(ids=st.lists(st.integers(0, 50294), max_size=20))
def test_any_ids_decode_as_transformers(tokenizer: Tokenizer, peers, ids: list[int]):
    text = tokenizer.decode(ids)
    assert text == b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "replace")
    assert text == peers[0].decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def test_vocabulary(tokenizer: Tokenizer):
    assert tokenizer.vocab_size == 50295
    assert tokenizer.eos_token_id == 50256
    assert tokenizer.token_bytes(50256) == b""
    assert [tokenizer.token_bytes(50257 + n).decode() for n in range(38)] == WHITESPACE
    assert {tokenizer.token_bytes(n) for n in range(256)} == {bytes([n]) for n in range(256)}
    for beyond in (50295, 51199, 10**9, -1, -50295):
        assert tokenizer.token_bytes(beyond) == b""
    assert tokenizer.decode(iter(np.array([71, 50256, 72, 51199]))) == "hi"


def test_indentation_takes_one_token(tokenizer: Tokenizer):
    assert tokenizer.encode("    return") == [50284, 7783]


def test_blanks_are_not_cleaned_up(tokenizer: Tokenizer):
    text = "a , b . c ! d 's n't  ?"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_characters_split_over_tokens(tokenizer: Tokenizer):
    ids = tokenizer.encode("龘")
    assert len(ids) > 1
    assert tokenizer.decode(ids[:-1]) == "\ufffd"
    decoder = codecs.getincrementaldecoder("utf-8")()
    assert "".join(decoder.decode(tokenizer.token_bytes(n)) for n in ids) == "龘"


def test_lone_surrogate(tokenizer: Tokenizer):
    with pytest.raises(ValueError, match="lone surrogate"):
        tokenizer.encode("a\ud800")
    with pytest.raises(TypeError):
        tokenizer.encode(5)  # type: ignore[arg-type]


def test_threads_share_one(tokenizer: Tokenizer):
    texts = [text * n for text in MIXED.values() for n in range(1, 6)]
    random.Random(0).shuffle(texts)
    expected = [tokenizer.encode(text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(tokenizer.encode, texts)) == expected
        assert list(pool.map(tokenizer.decode, expected)) == [
            text.replace(END_OF_TEXT, "") for text in texts
        ]


def test_folders_that_transformers_saves(tokenizer: Tokenizer, peers, tmp_path: Path):
    for n, peer in enumerate(peers):
        peer.save_pretrained(str(tmp_path / str(n)))
        check_same(Tokenizer.from_folder(tmp_path / str(n)), tokenizer)
    # tokenizer.json is enough.
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "0" / "tokenizer.json", tmp_path / "alone")
    check_same(Tokenizer.from_folder(tmp_path / "alone"), tokenizer)


def check_same(one: Tokenizer, other: Tokenizer) -> None:
    assert (one.vocab_size, one.eos_token_id) == (other.vocab_size, other.eos_token_id)
    assert all(one.token_bytes(n) == other.token_bytes(n) for n in range(one.vocab_size))
    for text in MIXED.values():
        assert one.encode(text) == other.encode(text)


def paddle_tokenizer_config(folder: Path) -> dict[str, object]:
    """What PaddleNLP 3.0.0b4's CodeGenTokenizer.save_pretrained writes to that file."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    added = {str(50257 + n): {"content": run, **flags} for n, run in enumerate(WHITESPACE)}
    added = {n: {**token, "special": False} for n, token in added.items()}
    names = ("pad_token", "eos_token", "unk_token", "bos_token")
    return {**dict.fromkeys(names, END_OF_TEXT), "eol_token": "Ċ", "added_tokens_decoder": added}


@pytest.mark.parametrize("files", [("added_tokens.json",), ("tokenizer_config.json",), ("both",)])
def test_folder_that_paddlenlp_saves(
    tokenizer: Tokenizer, folder: Path, tmp_path: Path, files: tuple[str]
):
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        shutil.copy(folder / name, tmp_path)
    if files != ("added_tokens.json",):
        config = json.dumps(paddle_tokenizer_config(folder))
        (tmp_path / "tokenizer_config.json").write_text(config, encoding="utf-8")
    if files == ("tokenizer_config.json",):
        (tmp_path / "added_tokens.json").unlink()
    check_same(Tokenizer.from_folder(tmp_path), tokenizer)


def test_folder_without_added_tokens_is_gpt2(folder: Path, tmp_path: Path, tokenizer: Tokenizer):
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(folder / name, tmp_path)
    plain = Tokenizer.from_folder(tmp_path)
    assert plain.vocab_size == 50257
    assert plain.encode("    return") == [220, 220, 220, 1441]
    assert plain.encode(f"a{END_OF_TEXT}") == [64, 50256]
    assert plain.decode([64, 50256, 50284]) == "a"


def test_the_folder_is_left_as_it_is(folder: Path):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    Tokenizer.from_folder(folder)
    after = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    assert after == before


def test_missing_files(folder: Path, tmp_path: Path):
    with pytest.raises(
        FileNotFoundError, match=r"no tokenizer\.json, and no vocab\.json or merges"
    ):
        Tokenizer.from_folder(tmp_path)
    shutil.copy(folder / "vocab.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no merges\.txt") as caught:
        Tokenizer.from_folder(tmp_path)
    assert "vocab.json" not in str(caught.value)


def without_end_of_text(content: str) -> str:
    vocabulary = json.loads(content)
    del vocabulary[END_OF_TEXT]
    return json.dumps(vocabulary)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("vocab.json", lambda _: "{", "broken vocab.json"),
        ("vocab.json", lambda _: "[1]", "broken vocab.json"),
        ("vocab.json", lambda text: text.replace('"\\u0120the"', '"?the"'), "out of vocabulary"),
        ("vocab.json", without_end_of_text, "not in the vocabulary|should have id"),
        ("merges.txt", lambda text: text + "a b c d\n", "merges.txt"),
        ("added_tokens.json", lambda _: "{", "not valid JSON"),
        ("added_tokens.json", lambda _: "[]", "must hold a JSON object"),
        ("added_tokens.json", lambda _: '{"  ": 60000}', "should have id 60000"),
        ("added_tokens.json", lambda _: '{"  ": "x"}', "has id 'x', not a number"),
        ("added_tokens.json", lambda _: '{"<|endoftext|>": 5}', "should have id 5"),
        ("tokenizer_config.json", lambda _: "\x00", "not valid JSON"),
        ("tokenizer_config.json", lambda _: '{"added_tokens_decoder": {"1": "  "}}', "two ids"),
        (
            "tokenizer_config.json",
            lambda _: '{"added_tokens_decoder": [1]}',
            "added_tokens_decoder",
        ),
        ("special_tokens_map.json", lambda _: '{"eos_token": "</s>"}', "'</s>' is not in the voc"),
        ("added_tokens.json", lambda _: '{"  ": "50257"}', "has id '50257', not a number"),
        ("added_tokens.json", lambda _: '{"  ": true}', "has id True, not a number"),
        ("added_tokens.json", lambda _: '{"  ": 1e999}', "1e999 is beyond any float"),
        ("added_tokens.json", lambda _: '{"  ": -1}', "should have id -1"),
        ("added_tokens.json", lambda _: '{"  ": %s}' % ("9" * 4000), "should have id an integer"),
        ("added_tokens.json", lambda _: '{"  ": %s}' % ("9" * 5000), "not valid JSON: .*digits"),
        ("added_tokens.json", lambda _: '{"a\\nb": [1]}', r"token 'a\\nb' has id \[1\], not a"),
        ("added_tokens.json", lambda _: '{"\\ud800": 50257}', "surrogate"),
        ("added_tokens.json", lambda _: '{"a":' * 50_000, "nested too deeply"),
        ("added_tokens.json", lambda _: '{"": 50257}', "has id 50257, not a number"),
        (
            "tokenizer_config.json",
            lambda _: '{"added_tokens_decoder": {"a\\nb": "  "}}',
            r"two ids, 50\d+ and 'a\\nb'",
        ),
        ("tokenizer_config.json", lambda _: '{"added_tokens_decoder": {"9": 9}}', "token '' has"),
        ("special_tokens_map.json", lambda _: '{"eos_token": "\\ud800"}', "surrogate"),
        ("tokenizer_config.json", lambda _: '{"add_bos_token": true}', "add_bos_token is not supp"),
        ("tokenizer_config.json", lambda _: '{"add_bos_token": 1}', "must be true or false, got 1"),
        ("tokenizer_config.json", lambda _: '{"add_prefix_space": "no"}', "true or false, got 'no"),
        ("tokenizer_config.json", lambda _: "[" * 100_000, "nested too deeply"),
        ("vocab.json", lambda _: '{"a":' * 100_000, "broken vocab.json"),
        ("vocab.json", lambda text: text.replace(": 5,", ": 1e999,"), "broken vocab.json"),
        ("vocab.json", lambda text: text.replace(": 5,", ": 4294967302,"), "have the same id"),
        ("merges.txt", lambda text: text + "\0 \0\n", "merges.txt|vocabulary"),
        ("tokenizer.json", lambda _: "{}", "broken tokenizer.json"),
        ("tokenizer.json", lambda _: "[" * 100_000, "broken tokenizer.json"),
        ("tokenizer.json", lambda _: '{"a":' * 100_000, "broken tokenizer.json"),
        ("tokenizer.json", lambda _: "\0", "broken tokenizer.json"),
        (
            "tokenizer.json",
            lambda _: '{"version": "1.0", "added_tokens": []',
            "broken tokenizer.json",
        ),
    ],
)
def test_broken_files(
    folder: Path, tmp_path: Path, name: str, change: Callable[[str], str], reason: str
):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    old = tmp_path / name
    old.write_text(change(old.read_text("utf-8") if old.is_file() else ""), encoding="utf-8")
    with pytest.raises(ValueError, match=reason) as caught:
        Tokenizer.from_folder(tmp_path)
    message = str(caught.value)
    assert message.splitlines() == [message]
    assert len(message) < 900
    assert str(tmp_path) in message


def test_a_tokenizer_of_another_kind(tmp_path: Path):
    content = {
        "version": "1.0",
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="not a byte-level BPE tokenizer"):
        Tokenizer.from_folder(tmp_path)
