"""Taskflow("code_generation") from end to end, through PaddleNLP."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import paddle
import pytest
from byte_tokenizer import write_byte_tokenizer
from checkpoints import TINY, write_paddle, write_safetensors, write_torch
from file_server import serving
from hypothesis import given, settings
from random_models import spread_tensors, write_model

from paddlenlp_codegen_task import CodeGenerator, GenerationConfig, register
from paddlenlp_codegen_task.export import paddle_graph
from paddlenlp_codegen_task.export.store import ExportError
from paddlenlp_codegen_task.model.hub import DownloadError
from paddlenlp_codegen_task.model.names import DEFAULT_MODEL, KNOWN_MODELS
from paddlenlp_codegen_task.options import option_names
from paddlenlp_codegen_task.truncation import DEFAULT_TRUNCATION

CONFIG = dataclasses.replace(TINY, vocab_size=257, n_positions=256)
PROMPTS = ["def f(x):\n    return", "x =", "class Queue:\n    def push(self, item):"]
GREEDY = {"decode_strategy": "greedy_search", "max_length": 12, "truncation": None}
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def _no_statistics() -> Iterator[None]:
    """PaddleNLP tells its server, once a process, which task is used."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("paddlenlp.taskflow.utils.DOWNLOAD_CHECK", True)
        yield


@pytest.fixture(scope="module")
def taskflow(home_path: Path) -> Callable[..., Any]:
    """Taskflow("code_generation") on one thread in a home of the tests' own."""
    from paddlenlp import Taskflow

    def make(**options: object) -> Any:
        options = {"home_path": str(home_path), "num_threads": 1, **options}
        return Taskflow("code_generation", **options)

    return make


@pytest.fixture(scope="module")
def codegen(taskflow: Callable[..., Any]) -> Any:
    return taskflow(model="builtin")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("small"), CONFIG, spread_tensors(CONFIG))


@pytest.fixture(scope="module")
def small(taskflow: Callable[..., Any], checkpoint: Path) -> Any:
    """A small random model with one token a byte."""
    return taskflow(task_path=str(checkpoint))


def one_line(raised: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(raised.value)
    assert message
    assert "\n" not in message
    return message


# Prompts in, texts out


def test_one_prompt_or_a_list(codegen: Any, builtin: CodeGenerator) -> None:
    texts = codegen(PROMPTS, **GREEDY)
    assert texts == [completion.text for (completion,) in builtin.generate(PROMPTS, **GREEDY)]
    assert len(set(texts)) == 3
    assert all(isinstance(text, str) and text for text in texts)
    assert codegen(PROMPTS[::-1], **GREEDY) == texts[::-1]
    assert codegen(tuple(PROMPTS), **GREEDY) == texts
    assert [codegen(prompt, **GREEDY)[0] for prompt in PROMPTS] == texts
    assert codegen(PROMPTS * 4, batch_size=5, **GREEDY) == texts * 4


def test_several_sequences_a_prompt(codegen: Any) -> None:
    options = {"num_return_sequences": 3, "max_length": 16, "seed": 1, "truncation": None}
    texts = codegen(PROMPTS, **options)
    assert [len(of_prompt) for of_prompt in texts] == [3, 3, 3]
    assert all(len(set(of_prompt)) > 1 for of_prompt in texts)
    assert codegen(PROMPTS[0], **options) == texts[:1]


def test_output_scores_as_paddlenlp_gives_them(codegen: Any) -> None:
    options = {**GREEDY, "output_scores": True}
    texts, scores = codegen(PROMPTS, **options)
    assert texts == codegen(PROMPTS, **GREEDY)
    assert [len(one) for one in scores] == [1] * len(PROMPTS)
    assert all(-20 < score < 0 for [score] in scores)
    texts, scores = codegen(PROMPTS[0], num_return_sequences=3, **options)
    assert [len(one) for one in texts] == [len(one) for one in scores] == [3]


def test_stream_and_session(codegen: Any) -> None:
    task = codegen.task_instance
    [text] = codegen(PROMPTS[0], **GREEDY)
    assert "".join(task.stream(PROMPTS[0], **GREEDY)) == text
    session = task.session()
    assert session.turn(PROMPTS[0], **GREEDY) == text


def test_defaults(codegen: Any) -> None:
    defaults = {
        "max_length": 128,
        "min_length": 0,
        "decode_strategy": "sampling",
        "temperature": 0.6,
        "top_k": 5,
        "top_p": 1.0,
        "repetition_penalty": 1.1,
        "num_return_sequences": 1,
        "truncation": "\nclass|\ndef|\n#|\n@|\nprint|\nif",
    }
    assert defaults["truncation"] == DEFAULT_TRUNCATION
    assert defaults.items() <= dataclasses.asdict(GenerationConfig()).items()
    texts = codegen(PROMPTS, seed=3)
    assert texts == codegen(PROMPTS, seed=3, **defaults)
    assert texts != codegen(PROMPTS, seed=4)
    assert texts != codegen(PROMPTS, seed=3, temperature=2.0, top_k=0)
    assert texts != codegen(PROMPTS, seed=3, repetition_penalty=1.5)


def test_options_at_construction_and_by_call(
    taskflow: Callable[..., Any], checkpoint: Path, small: Any
) -> None:
    longer = small(PROMPTS[0], **GREEDY)[0]
    greedy = taskflow(task_path=checkpoint, **GREEDY)
    assert greedy(PROMPTS[0]) == [longer]
    (shorter,) = greedy(PROMPTS[0], max_length=5)
    assert longer.startswith(shorter)
    assert len(shorter) < len(longer)
    assert greedy(PROMPTS[0]) == [longer]  # one call's options are not the next one's
    assert greedy(PROMPTS[0], decode_strategy="sampling", temperature=9.0, seed=0) != [longer]
    cut = greedy(PROMPTS[0], truncation=longer[3])
    assert cut == [longer[: longer.index(longer[3])].rstrip()]


def test_threads_share_a_task(codegen: Any) -> None:
    alone = codegen(PROMPTS, **GREEDY)
    with ThreadPoolExecutor(4) as pool:
        together = pool.map(lambda prompt: codegen(prompt, **GREEDY), PROMPTS * 4)
    assert [text for (text,) in together] == alone * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"qkv_groups": 3}, "n_head must be divisible by 3, the number of groups of qkv_proj"),
        ({"qkv_groups": "8"}, "qkv_groups must be an integer, got '8'"),
        ({"adapter": "./nowhere"}, "adapter: there is no folder nowhere"),
        ({"adapter": 3}, "adapter must be a folder's path or a repository's name, got 3"),
        ({"lora_path": "x"}, "unknown option 'lora_path'; use adapter"),
    ],
)
def test_options_of_the_weights_are_passed_on(
    taskflow: Callable[..., Any], checkpoint: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises((ValueError, TypeError, OSError)) as raised:
        taskflow(task_path=str(checkpoint), **options)
    assert message in one_line(raised)


# Models by name


def test_registered_models(taskflow: Callable[..., Any]) -> None:
    from paddlenlp.taskflow.taskflow import TASKS

    assert {*KNOWN_MODELS, "builtin"} <= TASKS["code_generation"]["models"].keys()
    assert len(KNOWN_MODELS) == 20  # CodeGen2's have two names each
    before = {name: dict(task) for name, task in TASKS.items()}
    register()
    assert before == TASKS
    with pytest.raises(AssertionError, match="Salesforce/codegen-1B-mono") as raised:
        taskflow(model="Salesforce/codegen-1B-mono")
    one_line(raised)


@pytest.mark.parametrize("model", KNOWN_MODELS)
def test_a_named_model_is_never_replaced(
    taskflow: Callable[..., Any], tmp_path: Path, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DownloadError) as raised:
        taskflow(model=model, home_path=str(tmp_path))
    message = one_line(raised)
    assert message.startswith(f"{model} cannot be downloaded")
    assert "task_path" in message
    assert not caplog.records
    assert not (tmp_path / "taskflow").exists()


def test_no_model_and_no_network(
    taskflow: Callable[..., Any], codegen: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        default = taskflow()
    (warning,) = caplog.messages
    assert "\n" not in warning
    assert "built-in model" in warning
    assert DEFAULT_MODEL in warning
    assert "task_path=" in warning
    assert default(PROMPTS, **GREEDY) == codegen(PROMPTS, **GREEDY)
    assert default.task_instance.model == "builtin"


@pytest.mark.parametrize("model", [None, DEFAULT_MODEL, "Salesforce/codegen-16B-nl"])
def test_downloaded_model(
    taskflow: Callable[..., Any],
    checkpoint: Path,
    small: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    model: str | None,
) -> None:
    """What lies in PaddleNLP's cache runs without a network, and without a warning."""
    shutil.copytree(checkpoint, tmp_path / "models" / (model or DEFAULT_MODEL))
    with caplog.at_level(logging.WARNING):
        cached = taskflow(model=model, home_path=str(tmp_path))
    assert not caplog.messages
    assert cached(PROMPTS, **GREEDY) == small(PROMPTS, **GREEDY)
    assert cached.task_instance.model == (model or DEFAULT_MODEL)
    exports = tmp_path / "taskflow" / "code_generation" / (model or DEFAULT_MODEL)
    assert Path(cached.task_path()).parent == exports


# Models by path


@pytest.mark.parametrize("write", [write_paddle, write_safetensors, write_torch])
def test_checkpoint_formats(
    taskflow: Callable[..., Any], small: Any, tmp_path: Path, write: Callable[..., Path]
) -> None:
    folder = write_byte_tokenizer(write(tmp_path / "mine", spread_tensors(CONFIG), CONFIG))
    texts = taskflow(task_path=str(folder))(PROMPTS, **GREEDY)
    assert texts == small(PROMPTS, **GREEDY)


def test_static_model_without_weights(
    taskflow: Callable[..., Any], checkpoint: Path, small: Any, tmp_path: Path
) -> None:
    weights = shutil.copytree(checkpoint, tmp_path / "weights")
    home = tmp_path / "home"
    exported = taskflow(task_path=str(weights), home_path=str(home)).task_path()
    assert Path(exported).parent == home / "taskflow" / "code_generation" / "weights"
    elsewhere = shutil.copytree(exported, tmp_path / "another place" / "exported")
    shutil.rmtree(weights)
    shutil.rmtree(home)
    deployed = taskflow(task_path=str(elsewhere), is_static_model=True, home_path=str(home))
    assert deployed(PROMPTS, **GREEDY) == small(PROMPTS, **GREEDY)
    assert deployed.task_path() == str(elsewhere)
    assert not home.exists()

    os.truncate(elsewhere / "model.pdiparams", 100)
    with pytest.raises(ExportError, match="damaged") as raised:
        taskflow(task_path=str(elsewhere), is_static_model=True)
    assert "export again" in one_line(raised)


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"task_path": "./not/there"}, FileNotFoundError, "task_path: there is no folder"),
        (
            {"task_path": "./not/there", "is_static_model": True},
            FileNotFoundError,
            "task_path: there is no folder",
        ),
        ({"is_static_model": True}, ValueError, "is_static_model=True needs task_path"),
        ({"task_path": str(ROOT / "tests")}, FileNotFoundError, "no config.json"),
        (
            {"task_path": str(ROOT / "tests"), "is_static_model": True},
            ExportError,
            "no manifest.json",
        ),
        ({"task_path": "./x", "from_hf_hub": True}, ValueError, "from_hf_hub"),
        (
            {"task_path": str(ROOT), "from_hf_hub": True, "is_static_model": True},
            ValueError,
            "from_hf_hub",
        ),
    ],
)
def test_wrong_paths(
    taskflow: Callable[..., Any], options: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error) as raised:
        taskflow(**options)
    assert named in one_line(raised)


# Bad input


BAD_OPTIONS = [
    ({"max_length": 0}, ValueError, "max_length must be at least 1"),
    ({"max_length": 2.5}, TypeError, "max_length must be an integer"),
    ({"min_length": -1}, ValueError, "min_length must be at least 0"),
    ({"max_length": 4, "min_length": 5}, ValueError, "min_length (5) must not be above max_length"),
    ({"temperature": 0}, ValueError, "temperature must be above 0"),
    ({"temperature": -0.5}, ValueError, "temperature must be above 0"),
    ({"temperature": float("nan")}, ValueError, "temperature must be above 0"),
    ({"temperature": "hot"}, TypeError, "temperature must be a number"),
    ({"top_k": -1}, ValueError, "top_k must be at least 0"),
    ({"top_p": 0}, ValueError, "top_p must be in (0, 1]"),
    ({"top_p": 1.5}, ValueError, "top_p must be in (0, 1]"),
    ({"repetition_penalty": 0}, ValueError, "repetition_penalty must be above 0"),
    ({"num_return_sequences": 0}, ValueError, "num_return_sequences must be at least 1"),
    ({"decode_strategy": "guess"}, ValueError, "decode_strategy must be one of"),
    ({"prompt_overflow": "ignore"}, ValueError, "prompt_overflow must be one of"),
    ({"seed": "now"}, TypeError, "seed must be an integer"),
    ({"truncation": "\n(class"}, ValueError, "truncation"),
    ({"truncation": ["ok", "[a"]}, ValueError, "truncation"),
    ({"truncation": 5}, TypeError, "truncation"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ({"max_lenght": 5}, TypeError, "unknown option 'max_lenght'; did you mean 'max_length'?"),
]
BAD_CONSTRUCTION = [
    ({"engine": "tensorrt"}, ValueError, "engine must be one of"),
    ({"precision": "fp64"}, ValueError, "precision must be one of"),
    ({"precision": "fp16"}, ValueError, "precision 'fp16' needs a GPU"),
    ({"device": "gpu"}, ValueError, "device: 'gpu' needs ONNX Runtime's CUDA provider: pip"),
    (
        {"device": "gpu", "engine": "paddle"},
        ValueError,
        "device: 'gpu' is no GPU here: this Paddle",
    ),
    ({"cuda_graph": True}, ValueError, "cuda_graph=True needs engine='onnxruntime' on a GPU"),
    ({"device": "abacus"}, ValueError, "device must be"),
    ({"task_path": "./x"}, ValueError, "pass model or task_path, not both: got 'builtin'"),
    ({"from_hf_hub": True}, ValueError, "from_hf_hub=True: the built-in model is not on the hub"),
    ({"is_static_model": True, "task_path": None}, ValueError, "is_static_model=True needs"),
    ({"num_threads": 0}, ValueError, "num_threads must be at least 1"),
    ({"num_threads": True}, TypeError, "num_threads must be an integer, got True"),
    ({"device_id": "x"}, TypeError, "device_id must be an integer, got 'x'"),
    ({"device_id": True}, TypeError, "device_id must be an integer, got True"),
    ({"device_id": -2}, ValueError, "device_id must be at least -1, got -2"),
    ({"device_id": 3}, ValueError, "device_id (3) has no effect: this Paddle runs on 'cpu'"),
    ({"device_id": -1, "device": "cpu"}, ValueError, "pass device or device_id, not both: got 'cp"),
    ({"static_mode": "no"}, TypeError, "static_mode must be True or False, got 'no'"),
    ({"from_hf_hub": np.array([1, 2])}, TypeError, "from_hf_hub must be True or False"),
    ({"is_static_model": "no"}, TypeError, "is_static_model must be True or False, got 'no'"),
    ({"logprobs": 3}, ValueError, "logprobs has no effect with Taskflow, whose answers are texts"),
    ({"prompt_logprobs": 0}, ValueError, "prompt_logprobs has no effect with Taskflow, whose"),
    ({"num_beams": 6}, ValueError, "num_beams has no effect with decode_strategy='sampling'"),
    ({"n": 2}, TypeError, "unknown option 'n'; use num_return_sequences"),
    ({"use_faster": True}, TypeError, "unknown option 'use_faster'"),
    ({"taskpath": "./x"}, TypeError, "unknown option 'taskpath'; did you mean 'task_path'?"),
    ({"static_model": True}, TypeError, "unknown option 'static_model'"),
]


@pytest.mark.parametrize(("options", "error", "named"), BAD_OPTIONS)
def test_bad_options_of_a_call(
    codegen: Any, options: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error) as raised:
        codegen("x =", **options)
    assert named in one_line(raised)


def test_none_is_the_default_of_the_paths(taskflow: Callable[..., Any]) -> None:
    codegen = taskflow(model="builtin", task_path=None, home_path=None)
    assert codegen.task_instance.model == "builtin"
    assert Path(codegen.task_path()).is_relative_to(os.environ["PPNLP_HOME"])


@pytest.mark.parametrize(("options", "error", "named"), BAD_OPTIONS + BAD_CONSTRUCTION)
def test_bad_options_of_a_task(
    taskflow: Callable[..., Any],
    tmp_path: Path,
    options: dict[str, Any],
    error: type[Exception],
    named: str,
) -> None:
    with pytest.raises(error) as raised:
        taskflow(model="builtin", home_path=str(tmp_path), **options)
    assert named in one_line(raised)
    assert not list(tmp_path.iterdir())  # told before anything is exported


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"home_path": 0}, "home_path must be a folder's path, got 0"),
        ({"home_path": "~nosuchuser"}, "home_path: '~nosuchuser': there is no such home"),
        ({"task_path": 3}, "task_path must be a folder's path or a repository's name, got 3"),
        ({"task_path": b"x"}, "task_path must be a folder's path or a repository's name, got b'x'"),
        ({"task_path": ""}, "task_path must not be empty"),
        ({"task_path": "a\0"}, "task_path: a path cannot hold a null character"),
        ({"task_path": "x" * 300}, "task_path: a path may have 4095 bytes, each name in it 255"),
        ({"task_path": "gpt2"}, "unknown model 'gpt2': There is no folder of this name either"),
    ],
    ids=str,
)
def test_paths_that_are_none(taskflow: Callable[..., Any], options: Any, named: str) -> None:
    with pytest.raises((TypeError, ValueError, OSError)) as raised:
        taskflow(**options)
    assert named in one_line(raised)


def test_logprobs_have_no_place_in_an_answer(codegen: Any) -> None:
    with pytest.raises(ValueError, match=r"^logprobs has no effect with Taskflow"):
        codegen("x", logprobs=2)
    assert codegen("x", logprobs=None, **GREEDY)


# What Taskflow takes itself, `model` and `mode`, is its own to check.
TASK_OPTIONS = [*option_names(), "task_path", "is_static_model", "device_id"]


@settings(max_examples=600, deadline=None)
@given(options=hostile.sets(TASK_OPTIONS))
def test_any_values_of_a_task(options: dict[str, Any]) -> None:
    from paddlenlp import Taskflow

    missing = "/there/is/no/folder"
    keywords = {"task_path": missing, **options}
    if keywords["task_path"] is None:  # that means whatever there is
        keywords["task_path"] = missing
    with pytest.raises((TypeError, ValueError, OSError)) as raised:
        Taskflow("code_generation", **keywords)
    names = [*options, "unknown model", "task_path", "downloaded", "repository"]
    hostile.check_line(raised.value, names)


@pytest.mark.parametrize(
    ("prompts", "options", "error", "named"),
    [
        ("", {}, ValueError, "prompt 0 must not be empty"),
        (["x", ""], {}, ValueError, "prompt 1 must not be empty"),
        (["x", "y", 3], {}, TypeError, "prompt 2 must be a str, got int"),
        ([["x"]], {}, TypeError, "prompt 0 must be a str, got list"),
        ([], {}, ValueError, "prompts must not be an empty list"),
        (None, {}, TypeError, "prompts must be a str or a list of str, got NoneType"),
        ({"text": "x"}, {}, TypeError, "prompt 0 must be a str, or a dict with prefix and suffix"),
        (["x", "\ud800"], {}, ValueError, "prompt 1: the text holds a lone surrogate"),
        ("x" * 200, {"max_length": 100}, ValueError, "prompt 0 has 200 tokens"),
        (["x", "y" * 300], {}, ValueError, "prompt 1 has 300 tokens"),
        (
            "x",
            {"max_length": 256},
            ValueError,
            "max_length must be below the model's context of 25",
        ),
        (
            "x" * 300,
            {"max_length": 256, "prompt_overflow": "truncate_left"},
            ValueError,
            "max_length must be below the model's context of 256",
        ),
    ],
)
def test_bad_prompts(
    small: Any, prompts: object, options: dict[str, Any], error: type[Exception], named: str
) -> None:
    before = small(PROMPTS, **GREEDY)
    with pytest.raises(error) as raised:
        small(prompts, **options)
    assert named in one_line(raised)
    assert small(PROMPTS, **GREEDY) == before


def test_one_argument(small: Any) -> None:
    for prompts in ((), ("x", "y")):
        with pytest.raises(TypeError, match="one prompt or one list of prompts") as raised:
            small(*prompts)
        one_line(raised)


def test_long_prompts_may_lose_their_beginning(small: Any) -> None:
    prompt = "".join(chr(ord("a") + n % 26) for n in range(500))
    options = {**GREEDY, "prompt_overflow": "truncate_left"}
    room = CONFIG.n_positions - GREEDY["max_length"]
    assert small(prompt, **options) == small(prompt[-room:], **GREEDY)
    assert small(prompt[-room:], **options) == small(prompt[-room:], **GREEDY)
    with pytest.raises(ValueError, match=f"only {room} fit the context of 256") as raised:
        small(prompt[-room - 1 :], **GREEDY)
    assert "truncate_left" in one_line(raised)


# The lifecycle that PaddleNLP's tasks share


def test_lifecycle(codegen: Any) -> None:
    from paddlenlp.taskflow.task import Task

    task = codegen.task_instance
    assert isinstance(task, Task)
    assert not inspect.isabstract(type(task))
    inputs = task._preprocess((PROMPTS,))
    outputs = task._run_model(inputs, **GREEDY)
    assert task._postprocess(outputs) == codegen(PROMPTS, **GREEDY)


def test_construct_tokenizer(small: Any) -> None:
    task = small.task_instance
    tokenizer, task._tokenizer = task._tokenizer, None
    task._construct_tokenizer("any")
    assert task._tokenizer is tokenizer
    assert tokenizer.decode(tokenizer.encode("def f():")) == "def f():"


def test_construct_input_spec(small: Any) -> None:
    task = small.task_instance
    task._input_spec = None
    task._construct_input_spec()
    assert [spec.name for spec in task._input_spec] == [
        one[0] for one in paddle_graph.inputs(CONFIG, "float32")
    ]
    assert [len(spec.shape) for spec in task._input_spec] == [2, 1, 1, 2, 2, 2, 2]
    caches = task._input_spec[3:]
    assert {tuple(spec.shape) for spec in caches} == {(-1, CONFIG.head_dim)}
    assert {spec.dtype for spec in caches} == {paddle.float32}


def test_construct_model(small: Any, tmp_path: Path, checkpoint: Path, taskflow: Any) -> None:
    task = taskflow(task_path=str(checkpoint)).task_instance
    task._home_path, task._task_path = str(tmp_path), str(checkpoint)
    task._construct_model("any")
    folder = Path(task._task_path)
    assert folder.parent == tmp_path / "taskflow" / "code_generation" / checkpoint.name
    assert any((folder / name).is_file() for name in paddle_graph.PROGRAM_FILES)
    assert task((PROMPTS,), **GREEDY) == small(PROMPTS, **GREEDY)


def test_help_and_task_path(codegen: Any, home_path: Path, capsys: Any) -> None:
    codegen.help()
    printed = capsys.readouterr().out
    assert 'Taskflow("code_generation")' in printed
    assert "is_static_model=True" in printed
    export = Path(codegen.task_path())
    assert export.parent == home_path / "taskflow" / "code_generation" / "builtin"
    assert (export / "manifest.json").is_file()


def test_device_id(taskflow: Callable[..., Any], checkpoint: Path, small: Any) -> None:
    on_cpu = taskflow(task_path=str(checkpoint), device_id=-1)
    assert on_cpu(PROMPTS, **GREEDY) == small(PROMPTS, **GREEDY)


# In processes of their own


def run(script: str, *arguments: object, **environment: str) -> str:
    """Run a script that has no trace of this process; return what it printed last."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


COMPLETE = f"""
import paddlenlp.taskflow.utils
paddlenlp.taskflow.utils.DOWNLOAD_CHECK = True
codegen = Taskflow("code_generation", num_threads=1, **eval(sys.argv[1]))
print(repr(codegen({PROMPTS!r}, **{GREEDY!r})))
"""


@pytest.mark.parametrize(
    "imports",
    [
        """
import sys
import paddlenlp_codegen_task
loaded = sys.modules.keys() & {"paddle", "paddlenlp", "torch", "transformers", "onnxruntime"}
assert not loaded, loaded
from paddlenlp import Taskflow
""",
        """
import sys
from paddlenlp import Taskflow
import paddlenlp_codegen_task
""",
    ],
    ids=["ours first", "paddlenlp first"],
)
def test_import_order(codegen: Any, home_path: Path, imports: str) -> None:
    options = {"model": "builtin", "home_path": str(home_path)}
    assert run(imports + COMPLETE, options) == repr(codegen(PROMPTS, **GREEDY))


def test_from_hf_hub(checkpoint: Path, small: Any, tmp_path: Path) -> None:
    with serving() as server:
        server.hub["someone/some-model"] = {
            path.name: path.read_bytes() for path in checkpoint.iterdir()
        }
        printed = run(
            "import sys\nimport paddlenlp_codegen_task\nfrom paddlenlp import Taskflow" + COMPLETE,
            {"task_path": "someone/some-model", "from_hf_hub": True, "home_path": str(tmp_path)},
            HF_ENDPOINT=server.url,
            HF_HOME=str(tmp_path / "hub"),
            HF_HUB_OFFLINE="0",
            NO_PROXY="127.0.0.1",
            no_proxy="127.0.0.1",
        )
        assert printed == repr(small(PROMPTS, **GREEDY))
        assert {request.layout for request in server.requests} == {"hub"}
    assert list((tmp_path / "hub").rglob("model.safetensors"))
    assert (tmp_path / "taskflow" / "code_generation" / "someone" / "some-model").is_dir()
