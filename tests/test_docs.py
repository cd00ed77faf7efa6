"""The documentation: its examples run, its tables are true, English and Chinese keep step.

Blocks fenced as `python` are run offline, on the built-in model, the blocks of a page in one
namespace; those with `>>>` as doctests. Blocks fenced as `py` need a download, other hardware or
the reader's files, and are only compiled. The Chinese pages must have the same blocks but for
comments, so only the English ones are run.
"""

from __future__ import annotations

import ast
import doctest
import inspect
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

import paddlenlp_codegen_task
from paddlenlp_codegen_task import GenerationConfig
from paddlenlp_codegen_task.finding import BUILTIN_FOLDER
from paddlenlp_codegen_task.generator import DEFAULT_BATCH_SIZE
from paddlenlp_codegen_task.loading import LoadOptions
from paddlenlp_codegen_task.model.checkpoint import expected_shapes
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.names import BUILTIN, CODEGEN2_MODELS, SALESFORCE_MODELS
from paddlenlp_codegen_task.runtime.base import StepOutput
from paddlenlp_codegen_task.runtime.engines import ENGINES, PRECISIONS

ROOT = Path(__file__).resolve().parents[1]
INDEX = "docs/README.md"  # in both languages at once
ENGLISH = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"]
ENGLISH += sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "docs").glob("*.md")
    if not path.name.endswith("_cn.md") and path.name != "README.md"
)
PAIRS = [(page, page.replace(".md", "_cn.md")) for page in ENGLISH]
READMES = ["README.md", "README_cn.md"]
PAGES = [*(page for pair in PAIRS for page in pair), INDEX]


@dataclass
class Page:
    """What a Markdown page consists of; `tables` hold cells, the header's first."""

    blocks: list[tuple[str, int, str]]  # language, line, code
    headings: list[tuple[int, str]]  # level, text
    tables: list[list[list[str]]]
    prose: str

    def code(self, language: str) -> list[tuple[int, str]]:
        return [(line, code) for fence, line, code in self.blocks if fence == language]


def read(name: str) -> Page:
    page = Page([], [], [], "")
    fence: str | None = None
    rows: list[list[str]] | None = None
    for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            if fence is None:
                fence = line[3:]
                page.blocks.append((fence, number, ""))
            else:
                fence = None
        elif fence is not None:
            language, start, code = page.blocks[-1]
            page.blocks[-1] = language, start, f"{code}{line}\n"
        else:
            page.prose += f"{line}\n"
            if heading := re.match(r"(#+) (.+)", line):
                page.headings.append((len(heading[1]), heading[2]))
            if not line.startswith("|"):
                rows = None
                continue
            if rows is None:
                rows = []
                page.tables.append(rows)
            cells = re.split(r"(?<!\\)\|", line)[1:-1]
            rows.append([cell.replace(r"\|", "|").strip() for cell in cells])
    for table in page.tables:
        assert set("".join(table.pop(1))) <= set("-: "), f"{name}: {table[0]} has no header"
    return page


def table(name: str, header: str) -> dict[str, list[str]]:
    """The first cell, without backticks, to the others, of the tables with this first header."""
    tables = [one for one in read(name).tables if one[0][0] == header]
    assert tables, f"{name} has no table of {header}"
    return {row[0].strip("`"): row[1:] for one in tables for row in one[1:]}


def examples(code: str) -> list[tuple[str, str]]:
    """What a block does, without its comments, and what it says it prints."""
    if ">>>" in code:
        return [
            (ast.dump(ast.parse(one.source)), one.want)
            for one in doctest.DocTestParser().get_examples(code)
        ]
    return [(ast.dump(ast.parse(code)), "")]


@pytest.mark.parametrize("name", ENGLISH)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for line, code in read(name).code("python"):
        if ">>>" in code:
            test = doctest.DocTestParser().get_doctest(code, namespace, name, name, line)
            runner = doctest.DocTestRunner()
            output: list[str] = []
            runner.run(test, out=output.append, clear_globs=False)
            assert not runner.failures, "".join(output)
            namespace.update(test.globs)
        else:
            exec(compile("\n" * line + code, str(ROOT / name), "exec"), namespace)
    if "app" in namespace:
        answer_request(name, namespace["app"])


def answer_request(name: str, app: Any) -> None:
    """Send the page's curl request to the server that it has just made."""
    from fastapi.testclient import TestClient

    (shell,) = (code for _, code in read(name).code("bash") if "curl" in code)
    path = re.search(r"http://[^/]+(/\S+)", shell)
    body = re.search(r"-d '(.*)'", shell)
    assert path is not None
    assert body is not None
    request = json.loads(body[1])
    answer = TestClient(app).post(path[1], json=request)
    assert answer.status_code == 200
    assert len(answer.json()["result"]) == len(request["data"]["text"])


@pytest.mark.parametrize("name", PAGES)
def test_examples_that_are_not_run_compile(name: str):
    for line, code in read(name).code("py"):
        compile("\n" * line + code, name, "exec")


@pytest.mark.parametrize("name", PAGES)
def test_blocks_say_what_they_are(name: str):
    known = {"python", "py", "bash", "text", "json", "yaml", "lua"}
    assert {language for language, _, _ in read(name).blocks} <= known
    for _, code in read(name).code("json"):
        json.loads(code)


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_chinese_keeps_step(english: str, chinese: str):
    ours, theirs = read(english), read(chinese)
    for language in ("python", "py"):
        assert [examples(code) for _, code in ours.code(language)] == [
            examples(code) for _, code in theirs.code(language)
        ]
    assert [language for language, _, _ in ours.blocks] == [one for one, _, _ in theirs.blocks]
    assert [level for level, _ in ours.headings] == [level for level, _ in theirs.headings]
    assert [[len(row) for row in rows] for rows in ours.tables] == [
        [len(row) for row in rows] for rows in theirs.tables
    ]
    assert re.findall("<!--.*?-->", ours.prose) == re.findall("<!--.*?-->", theirs.prose)


def anchors(name: str) -> set[str]:
    """Of every heading, as GitHub makes them."""
    kept = (re.sub(r"[^\w\- ]", "", text.lower()) for _, text in read(name).headings)
    return {text.replace(" ", "-") for text in kept}


@pytest.mark.parametrize("name", PAGES)
def test_links_resolve(name: str):
    for target in re.findall(r"\]\(([^)]+)\)", read(name).prose):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.is_file(), f"{name}: {target}"
        if anchor:
            assert anchor in anchors(str(path)), f"{name}: {target}"


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_languages_link_to_each_other(english: str, chinese: str):
    for name, other in ((english, chinese), (chinese, english)):
        assert f"]({Path(other).name})" in read(name).prose.split("\n\n")[1]
        if name.startswith("docs/"):
            assert f"]({Path(name).name})" in (ROOT / INDEX).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "header", "language"),
    [
        ("README.md", "Page", 0),
        ("README_cn.md", "页面", 1),
    ],
)
def test_every_page_is_in_the_readme(name: str, header: str, language: int):
    listed = [re.search(r"\]\((.+)\)", page)[1] for page in table(name, header)]
    assert sorted(listed) == sorted(pair[language] for pair in PAIRS[1:])


@pytest.mark.parametrize("name", [*PAGES, "training/README.md", "Makefile"])
def test_commands_know_their_options(name: str):
    """Every script that a page or the Makefile calls is there, with the options it is given."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    for script, arguments in re.findall(r"python ((?:benchmarks|training)/\S+\.py)([^`\n]*)", text):
        source = (ROOT / script).read_text(encoding="utf-8")
        for option in re.findall(r"(?<!\S)--[\w-]+", arguments):
            assert f'"{option}"' in source, f"{name}: {script} has no {option}"


def test_lines_that_others_print_are_silenced(home_path: Path, tmp_path: Path):
    """By the block of the page: nothing is left on standard error, once there is an export."""
    [block] = [
        code for _, code in read("docs/models.md").code("python") if "filterwarnings" in code
    ]
    program = f"""{block}
import paddlenlp_codegen_task
from paddlenlp import Taskflow
print(Taskflow("code_generation", model="builtin", max_length=4, seed=0)("def f(x):"))
"""
    environment = {**os.environ, "PPNLP_HOME": str(home_path)}
    for _ in range(2):
        ran = subprocess.run(
            [sys.executable, "-c", program],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert ran.stdout.startswith("['")
    assert ran.stderr == ""


@pytest.mark.parametrize(("name", "header"), zip(READMES, ["Option", "参数"], strict=True))
def test_options(name: str, header: str):
    import paddlenlp

    of_taskflow = inspect.signature(paddlenlp.Taskflow.__init__).parameters
    defaults: dict[str, object] = {
        "model": of_taskflow["model"].default,
        "task_path": None,
        "is_static_model": False,
        "from_hf_hub": of_taskflow["from_hf_hub"].default,
        "device_id": of_taskflow["device_id"].default,
        **{one.name: one.default for one in fields(LoadOptions)},
        "draft_model": None,
        "kv_cache_bytes": None,
        "prefix_cache_bytes": 0,
        "batch_size": DEFAULT_BATCH_SIZE,
        **{one.name: one.default for one in fields(GenerationConfig)},
    }
    documented = table(name, header)
    assert {
        option: ast.literal_eval(cells[0].strip("`")) for option, cells in documented.items()
    } == defaults
    for option, values in (("engine", ENGINES), ("precision", PRECISIONS)):
        assert re.findall(r'`"(.*?)"`', documented[option][1]) == list(values)


def sizes(row: list[str], vocab_size: int) -> CodeGenConfig:
    """The model that a row of the model table describes."""
    layers, width, heads, context = map(int, row[1:5])
    return CodeGenConfig(
        vocab_size=vocab_size,
        n_positions=context,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        rotary_dim=32,
        n_inner=4 * width,
    )


@pytest.mark.parametrize(("name", "header"), zip(READMES, ["Model", "模型"], strict=True))
def test_models(name: str, header: str):
    rows = table(name, header)
    models = [model for model in rows if "codegen" in model or model == BUILTIN]
    assert models == [*SALESFORCE_MODELS, BUILTIN]
    builtin = CodeGenConfig.from_folder(BUILTIN_FOLDER)
    for model in models:
        row = rows[model]
        config = sizes(row, builtin.vocab_size if model == BUILTIN else 51200)
        if model == BUILTIN:
            stated = config.n_layer, config.n_embd, config.n_head, config.n_positions
            assert stated == (builtin.n_layer, builtin.n_embd, builtin.n_head, builtin.n_positions)
        else:
            of_codegen2 = model in CODEGEN2_MODELS
            assert row[7] == ("codegen2" if of_codegen2 else model.rsplit("-", 1)[1])
        count = sum(map(math.prod, expected_shapes(config).values()))
        assert row[0] == (f"{count / 1e6:.1f} M" if model == BUILTIN else f"{count / 1e6:.0f} M")
        for cell, width in ((row[5], 4), (row[6], 2)):
            size = count * width
            assert cell == (f"{size / 1e6:.0f} MB" if model == BUILTIN else f"{size / 1e9:.1f} GB")


@pytest.mark.parametrize(
    ("name", "header"),
    [("docs/static_graph.md", "Architecture"), ("docs/static_graph_cn.md", "模型规模")],
)
def test_memory_of_the_buffers(name: str, header: str):
    models = table("README.md", "Model")
    for architecture, cells in table(name, header).items():
        config = sizes(models[f"Salesforce/codegen-{architecture}-mono"], 51200)
        token = 2 * config.n_layer * config.n_embd
        assert cells == [
            f"{token * 128 * 4 / 1e6:.0f} MB",
            f"{token * 2048 * 4 / 1e9:.2f} GB",
            f"{token * 2048 * 2 / 1e9:.2f} GB",
        ]


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("docs/static_graph.md", "Input", "Output, in order"),
        ("docs/static_graph_cn.md", "输入", "输出（按顺序）"),
    ],
)
def test_inputs_and_outputs(name: str, first: str, second: str):
    from paddlenlp_codegen_task.export import paddle_graph

    config = CodeGenConfig.from_folder(BUILTIN_FOLDER)
    names = re.findall(r"\w+_\w+", " ".join(table(name, first)))
    of_first_layer = [re.sub("_i$", "_0", one) for one in names]
    assert of_first_layer == [one[0] for one in paddle_graph.inputs(config, "float32")][:5]
    outputs = table(name, second)
    assert [one.replace(" ", "_") for one in outputs] == [one.name for one in fields(StepOutput)]
    assert outputs["candidates"][0] == f"[M, {paddle_graph.NUM_CANDIDATES}]"


@pytest.mark.parametrize(
    ("name", "header"), [("docs/models.md", "Message"), ("docs/models_cn.md", "信息")]
)
def test_error_messages_are_the_code_s(name: str, header: str):
    import paddlenlp.taskflow.taskflow

    package = Path(paddlenlp_codegen_task.__file__).parent
    sources = [path.read_text(encoding="utf-8") for path in package.rglob("*.py")]
    source = "".join([*sources, inspect.getsource(paddlenlp.taskflow.taskflow)])
    source = re.sub(r"""["']\s*\n\s*f?["']""", "", source)
    source = re.sub(r"\{[^{}\n]*\}", "...", source)
    source = source.replace("The ... name", "The models name")
    source = source.replace("task:[...]", "task:[code_generation]")
    for row in (one for one in read(name).tables if one[0][0] == header):
        for message in re.findall("`(.*?)`", " ".join(cells[0] for cells in row[1:])):
            for part in filter(None, map(str.strip, message.split("..."))):
                assert part.strip("'") in source, f"{name}: {part}"
