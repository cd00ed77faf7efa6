"""What mypy, and so an editor, knows of the options: right calls pass, wrong ones do not."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

from paddlenlp_codegen_task import GenerationConfig
from paddlenlp_codegen_task.loading import LoadOptions
from paddlenlp_codegen_task.options import GenerationOptions, LoadingOptions
from paddlenlp_codegen_task.runtime import engines

ROOT = Path(__file__).parents[1]

# Each line that mypy is to object to says so, with what it has to name.
SNIPPETS = """
from pathlib import Path
from paddlenlp_codegen_task import CodeGenerator, Completion, GenerationConfig

generator = CodeGenerator.from_pretrained("builtin", precision="int8", max_length=9, device="cpu")
CodeGenerator.from_pretrained(Path("x"), home_path=Path("y"), num_threads=None, draft_model=None)
CodeGenerator.from_export("x", engine="onnxruntime", batch_size=3, static_mode=True)
CodeGenerator.from_pretrained("builtin", precision="int9")  # error: precision
CodeGenerator.from_pretrained("builtin", engine="tensorrt")  # error: engine
CodeGenerator.from_pretrained("builtin", max_lenght=9)  # error: max_lenght
CodeGenerator.from_pretrained(3)  # error: int
CodeGenerator.from_pretrained("builtin", num_threads="2")  # error: num_threads
CodeGenerator.from_pretrained("builtin", task_path="x")  # error: task_path
CodeGenerator.from_export("x", static_mode="no")  # error: static_mode
CodeGenerator("builtin")  # error: LoadedModel

found: list[list[Completion]] = generator.generate(
    ["x"], seed=3, stop=["a"], truncation=None, temperature=1, progress=False, batch_size=2
)
generator.generate("x", GenerationConfig(), logit_bias={3: 1.5}, suppress_tokens=range(9))
generator.generate("x", max_lenght=9)  # error: max_lenght
generator.generate("x", decode_strategy="greedy")  # error: decode_strategy
generator.generate("x", early_stopping="always")  # error: early_stopping
generator.generate("x", precision="int8")  # error: precision
generator.generate("x", top_k=0.5)  # error: top_k
generator.generate(3)  # error: int
generator.stream("x", max_length=3, stop="a")
generator.stream("x", batch_size=3)  # error: batch_size
generator.generate_as_completed(iter("ab"), batch_size=3, prompt_overflow="truncate_left")
generator.generate_as_completed("ab", progress=True)  # error: progress
GenerationConfig(stop=None, suppress_tokens=None, decode_strategy="beam_search", num_beams=2)
GenerationConfig(prompt_overflow="drop")  # error: prompt_overflow
session = generator.session(Path("x"))
text: str = session.turn("# add", max_length=3)
session.turn("# add", max_lenght=3)  # error: max_lenght
"""


def test_mypy_knows_the_options(tmp_path: Path):
    lines = SNIPPETS.splitlines()
    expected = {n: line.split("# error: ")[1] for n, line in enumerate(lines, 1) if "# err" in line}
    assert len(expected) == 18
    (tmp_path / "snippets.py").write_text(SNIPPETS, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "snippets.py"],
        cwd=tmp_path,
        env={"MYPYPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    errors = re.findall(r"^snippets\.py:(\d+): error: (.*)$", done.stdout, re.MULTILINE)
    found = {int(number): message for number, message in errors}
    assert found.keys() == expected.keys(), done.stdout
    for number, named in expected.items():
        assert named in found[number]


def test_the_types_list_all_options():
    generation = {one.name for one in fields(GenerationConfig)}
    assert get_type_hints(GenerationOptions) == get_type_hints(GenerationConfig)
    assert GenerationOptions.__annotations__.keys() == generation
    own = {"batch_size", "kv_cache_bytes", "prefix_cache_bytes", "draft_model"}
    loading = {one.name for one in fields(LoadOptions)}
    assert LoadingOptions.__annotations__.keys() == generation | loading | own
    hints = get_type_hints(LoadingOptions)
    assert {name: hints[name] for name in loading} == get_type_hints(LoadOptions)
    assert set(engines.ENGINES) == {"auto", *engines.MODULES}
