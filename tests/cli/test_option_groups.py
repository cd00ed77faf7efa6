"""Options that commands share: none is forgotten, each arrives, each is named in what is wrong."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from commands import invoke, of_builtin, refused
from typer.testing import CliRunner

from paddlenlp_codegen_task import GenerationConfig
from paddlenlp_codegen_task.cli import app, base, generation, loading
from paddlenlp_codegen_task.cli.complete import complete
from paddlenlp_codegen_task.cli.export import export
from paddlenlp_codegen_task.cli.options import with_options
from paddlenlp_codegen_task.cli.serve import serve
from paddlenlp_codegen_task.options import GenerationOptions, LoadingOptions

# Of each field: what is given, and what arrives.
FIELDS: dict[str, list[tuple[list[str], Any]]] = {
    "max_length": [(["--max-length=7"], 7), (["--max-length", "7"], 7)],
    "min_length": [(["--min-length=7"], 7)],
    "decode_strategy": [(["--decode-strategy=greedy_search"], "greedy_search")],
    "temperature": [(["--temperature=0.5"], 0.5), (["--temperature=1e-3"], 0.001)],
    "top_k": [(["--top-k=0"], 0)],
    "top_p": [(["--top-p=1"], 1.0)],
    "min_p": [(["--min-p=0.1"], 0.1)],
    "repetition_penalty": [(["--repetition-penalty=1.2"], 1.2)],
    "presence_penalty": [(["--presence-penalty=-1.5"], -1.5), (["--presence-penalty", "-1"], -1)],
    "frequency_penalty": [(["--frequency-penalty=0"], 0.0)],
    "logit_bias": [(["--logit-bias=5=1.5", "--logit-bias=6=-2"], {5: 1.5, 6: -2.0})],
    "suppress_tokens": [(["--suppress-tokens=5", "--suppress-tokens=6"], [5, 6])],
    "num_beams": [(["--num-beams=3"], 3)],
    "length_penalty": [(["--length-penalty=-0.5"], -0.5)],
    "early_stopping": [
        (["--early-stopping=true"], True),
        (["--early-stopping=false"], False),
        (["--early-stopping=never"], "never"),
    ],
    "num_return_sequences": [(["--num-return-sequences=3"], 3)],
    "best_of": [(["--best-of=3"], 3)],
    "logprobs": [(["--logprobs=0"], 0)],
    "prompt_logprobs": [(["--prompt-logprobs=0"], 0)],
    "output_scores": [(["--output-scores"], True), (["--no-output-scores"], False)],
    "seed": [(["--seed=0"], 0), ([f"--seed={2**128 - 1}"], 2**128 - 1)],
    "truncation": [
        (["--truncation=python"], "python"),
        (["--truncation=a", "--truncation=\nb"], ["a", "\nb"]),
        (["--no-truncation"], None),
    ],
    "stop": [(["--stop=a"], "a"), (["--stop=a", "--stop=b c"], ["a", "b c"])],
    "token_healing": [(["--token-healing"], True), (["--no-token-healing"], False)],
    "stop_token_ids": [(["--stop-token-ids=5", "--stop-token-ids=6"], [5, 6])],
    "ignore_eos": [(["--ignore-eos"], True), (["--no-ignore-eos"], False)],
    "prompt_lookup": [(["--prompt-lookup"], True), (["--no-prompt-lookup"], False)],
    "prompt_overflow": [(["--prompt-overflow=truncate_left"], "truncate_left")],
    "allow_special_tokens": [
        (["--allow-special-tokens"], True),
        (["--no-allow-special-tokens"], False),
    ],
}
LOADING: dict[str, tuple[list[str], Any]] = {
    "model": (["--model=builtin"], "builtin"),
    "engine": (["--engine=paddle"], "paddle"),
    "precision": (["--precision=int8"], "int8"),
    "kv_precision": (["--kv-precision=int8"], "int8"),
    "device": (["--device=gpu:1"], "gpu:1"),
    "num_threads": (["--num-threads=3"], 3),
    "home_path": (["--home-path=a b"], "a b"),
    "from_hf_hub": (["--from-hf-hub"], True),
    "cuda_graph": (["--cuda-graph"], True),
    "batch_size": (["--batch-size=3"], 3),
    "kv_cache_bytes": (["--kv-cache-bytes=3M"], 3 << 20),
    "prefix_cache_bytes": (["--prefix-cache-bytes=0"], 0),
    "draft_model": (["--draft-model=x"], "x"),
    "qkv_groups": (["--qkv-groups=8"], 8),
    "adapter": (["--adapter=a b"], "a b"),
}


def arrives(arguments: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a command gets: the options of loading, and those of generating."""
    found: list[tuple[dict[str, Any], dict[str, Any]]] = []

    @with_options(loading=True, generation=True)
    def command(*, loading: dict[str, Any], generation: dict[str, Any]) -> None:
        found.append((loading, generation))

    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return found[0]


def test_every_field_has_cases():
    assert list(FIELDS) == GenerationConfig.field_names()


@pytest.mark.parametrize(
    ("name", "arguments", "value"),
    [(name, *case) for name, cases in FIELDS.items() for case in cases],
)
def test_a_field_arrives_as_python_has_it(name: str, arguments: list[str], value: Any):
    assert arrives(arguments) == ({}, {name: value})
    strategy = {"num_beams": "beam_search", "length_penalty": "beam_search"}
    strategy["early_stopping"] = "beam_search"
    fields = {"decode_strategy": strategy.get(name, "sampling"), name: value}
    GenerationConfig(**fields)


def test_what_is_not_given_is_left_to_the_defaults():
    assert arrives([]) == ({}, {})


def test_every_option_of_loading_has_a_case():
    # Paddle's layers one by one are for debugging, in Python.
    options = {*LoadingOptions.__annotations__} - {*GenerationOptions.__annotations__}
    assert {*LOADING} == {*options, "model"} - {"static_mode"} == {*loading.NAMES}


@pytest.mark.parametrize("name", LOADING)
def test_an_option_of_loading_arrives(name: str):
    arguments, value = LOADING[name]
    assert arrives(arguments) == ({name: value}, {})


def test_no_two_options_of_a_command_have_one_name():
    for command in typer.main.get_command(app).commands.values():  # type: ignore[attr-defined]
        names = [name for one in command.params for name in (*one.opts, *one.secondary_opts)]
        assert sorted(names) == sorted({*names}), command.name


def test_commands_have_what_they_can_use():
    assert {*loading.NAMES} <= {*inspect.signature(complete).parameters}
    assert {*GenerationConfig.field_names()} <= {*inspect.signature(complete).parameters}
    assert {*loading.NAMES} <= {*inspect.signature(serve).parameters}
    assert "engine" in inspect.signature(export).parameters
    assert "batch_size" not in inspect.signature(export).parameters


def test_the_help_speaks_of_options():
    helps = generation.descriptions(GenerationConfig)
    assert list(helps) == GenerationConfig.field_names()
    for name, text in helps.items():
        assert text, name
        assert text[0].isupper() or not text[0].isalpha()
        assert not re.search(r"\bNone\b|\bTrue\b|\bFalse\b|https?:|`", text), text
        for other in GenerationConfig.field_names():
            assert "_" not in other or not re.search(rf"(?<!-)\b{other}\b", text), text
    assert helps["seed"].endswith("left out: a new one.")
    assert "--no-truncation keeps all text" in helps["truncation"]


@pytest.mark.parametrize("columns", ["80", "120"])
def test_the_help_shows_every_name_whole(columns: str):
    shown = invoke(["complete", "--help"], COLUMNS=columns, NO_COLOR="1").stdout
    for name in (*GenerationConfig.field_names(), *loading.NAMES):
        assert f" {generation.option(name)} " in shown, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-length=many"], "'--max-length': .*integer"),
        (["--max-length=0"], "^--max-length must be at least 1, got 0$"),
        (["--min-length=200"], r"^--min-length \(200\) must not be above --max-length \(128\)$"),
        (
            ["--decode-strategy=beam"],
            "^--decode-strategy must be one of 'sampling', 'greedy_search",
        ),
        (["--temperature=0"], r"--temperature must .* pass --decode-strategy='greedy_search'\)"),
        (["--temperature=warm"], "'--temperature': "),
        (["--temperature=nan"], "^--temperature must be above 0"),
        (["--top-k=0.5"], "'--top-k': .*integer"),
        (["--top-p=2"], r"^--top-p must be in \(0, 1\], got 2.0$"),
        (
            ["--logit-bias=50"],
            "'--logit-bias': '50' is no token's id and its bias, such as 50=-2.5",
        ),
        (["--logit-bias=x=1"], "'--logit-bias': 'x=1' is no token's id"),
        (["--logit-bias=1=x"], "'--logit-bias': '1=x' is no token's id"),
        (["--logit-bias=1=inf"], "^--logit-bias: a bias must be a finite number"),
        (["--logit-bias=-1=1"], "^--logit-bias: a token id must be at least 0"),
        (["--suppress-tokens=x"], "'--suppress-tokens': .*integer"),
        (["--suppress-tokens=-1"], "^--suppress-tokens: a token id must be at least 0"),
        (["--num-beams=2"], "^--num-beams has no effect with --decode-strategy='sampling': leave"),
        (["--early-stopping=soon"], "'--early-stopping': 'soon' is not one of true, false, never"),
        (["--num-return-sequences=0"], "^--num-return-sequences must be at least 1"),
        (
            ["--num-return-sequences=9", "--decode-strategy=beam_search"],
            r"^--num-return-sequences \(9\) must not be above --num-beams \(4\)$",
        ),
        (
            ["--best-of=1", "--num-return-sequences=2"],
            r"^--best-of \(1\) must not be below --num-r",
        ),
        (["--seed=-1"], "^--seed must be at least 0"),
        ([f"--seed={2**128}"], "^--seed must be at most "),
        (["--seed=" + "9" * 5000], "'--seed': "),
        (["--truncation=("], "^--truncation"),
        (["--truncation=a", "--no-truncation"], "--truncation and --no-truncation cannot both be"),
        (["--output-scores", "--no-output-scores"], "cannot both be given"),
        (["--stop="], "^--stop"),
        (["--prompt-overflow=drop"], "^--prompt-overflow must be one of 'error', 'truncate_left'"),
        (["--max-length=1024"], "^--max-length must be below the model's context of 1024"),
        (["--engine=steam"], "^--engine must be one of "),
        (["--batch-size=0"], "'--batch-size': "),
        (["--max-lenght=3"], "No such option: --max-lenght"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_cannot_be_is_one_line(arguments: list[str], message: str, home_path: Path):
    line = refused(["complete", "x =", *of_builtin(home_path), *arguments])
    assert re.search(message, line), line
    assert len(line) < 700


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("seed must be at least 0", "--seed must be at least 0"),
        ("this seed is good", "this seed is good"),
        ("for it pass from_hf_hub=True", "for it pass --from-hf-hub"),
        ("ignore_eos=False is the default", "--no-ignore-eos is the default"),
        ("device: 'gpu' is no GPU here", "--device: 'gpu' is no GPU here"),
        ("pass prompt_overflow='truncate_left'", "pass --prompt-overflow='truncate_left'"),
        ("the file best_of_all.json is empty", "the file best_of_all.json is empty"),
    ],
)
def test_options_in_errors(message: str, expected: str):
    assert base.in_options(message) == expected


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("top_p must be\nin (0, 1]"), 2, "--top-p must be in (0, 1]"),
        (TypeError("seed must be an integer"), 2, "--seed must be an integer"),
        (OSError(28, "No space left on device"), 1, "[Errno 28] No space left on device"),
        (FileNotFoundError("task_path: there is no folder x"), 1, "--model: there is no folder x"),
        (RuntimeError("this generator is closed"), 1, "this generator is closed"),
        (FloatingPointError("prompt 0: no numbers"), 1, "prompt 0: no numbers"),
        (MemoryError(), 1, "there is too little memory"),
        (MemoryError("Unable to allocate 3 GiB"), 1, "Unable to allocate 3 GiB"),
        (ImportError("No module named 'x'"), 1, "No module named 'x': pip install 'paddlenlp_code"),
    ],
    ids=repr,
)
def test_errors_and_exit_codes(
    error: Exception, code: int, line: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended, base.told():
        raise error
    assert ended.value.code == code
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.startswith(f"paddlenlp-codegen: {line}")
    assert written.err.count("\n") == 1


def test_a_fault_of_the_package_is_not_hidden():
    with pytest.raises(AssertionError), base.told():
        raise AssertionError("this cannot be")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (42_400_000, "42.4 MB")),
        *((123_456_789, "123 MB"), (28_256_000_000, "28.3 GB"), (10**15, "1000 TB")),
    ],
)
def test_sizes_as_one_reads_them(count: int, text: str):
    assert base.size_of(count) == text
