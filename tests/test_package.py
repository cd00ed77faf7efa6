"""The package as an index hands it out: metadata, the source distribution, and the wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

import pytest

import paddlenlp_codegen_task

ROOT = Path(__file__).resolve().parents[1]
# What a checkout or an unpacked source distribution has that is in no commit.
NOT_SOURCE = (".*", "build", "dist", "*.egg-info", "__pycache__")
# A few that need neither a model nor Paddle, and the folders beside the package.
QUICK_TESTS = ("tests/runtime/test_engines.py", "tests/test_docs.py::test_links_resolve")
QUICK_TESTS += ("tests/test_docs.py::test_models", "tests/training/test_windows.py")


def build(kind: str, tree: Path, out: Path) -> Path:
    """Build "sdist" or "wheel" of a tree as pip does; return the file."""
    out.mkdir()
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    command = [sys.executable, "-c", code]
    built = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert not built.returncode, built.stderr
    [file] = out.iterdir()
    return file


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of the unpacked source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("distributions")
    shutil.copytree(ROOT, folder / "tree", ignore=shutil.ignore_patterns(*NOT_SOURCE))
    with tarfile.open(build("sdist", folder / "tree", folder / "sdist")) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    [unpacked] = (folder / "unpacked").iterdir()
    shutil.copytree(unpacked, folder / "again")  # building leaves files behind
    return unpacked, build("wheel", folder / "again", folder / "wheel")


@pytest.fixture(scope="module")
def metadata(distributions: tuple[Path, Path]) -> Message:
    with zipfile.ZipFile(distributions[1]) as wheel:
        [name] = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        return HeaderParser().parsestr(wheel.read(name).decode("utf-8"))


def files_of(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_metadata(metadata: Message) -> None:
    assert metadata["Version"] == paddlenlp_codegen_task.__version__
    running = f"Programming Language :: Python :: {sys.version_info.major}.{sys.version_info.minor}"
    stated = metadata.get_all("Classifier") or []
    assert running in stated
    versions = [one.rsplit(" ", 1)[1] for one in stated if re.search(r":: \d+\.\d+$", one)]
    upper = f"{sys.version_info.major}.{int(versions[-1].split('.')[1]) + 1}"
    assert set(metadata["Requires-Python"].split(",")) == {f">={versions[0]}", f"<{upper}"}
    assert metadata["Keywords"]
    assert metadata["License-File"] == "LICENSE"


def test_links_of_the_description_work_on_an_index_page(metadata: Message) -> None:
    text = metadata.get_payload()
    assert isinstance(text, str)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.startswith(("#", "https://")), target
    # Every page that the README links to is still named.
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", readme):
        assert f"`{target}`" in text


def test_the_source_distribution_is_complete(distributions: tuple[Path, Path]) -> None:
    unpacked, _ = distributions
    found = files_of(unpacked)
    for folder in ("paddlenlp_codegen_task", "tests", "docs", "benchmarks", "training", "examples"):
        missing = {f"{folder}/{name}" for name in files_of(ROOT / folder)} - found
        assert not missing
    top = {path.name for path in ROOT.iterdir() if path.is_file() and path.name[0] != "."}
    assert not top - found - {"PKG-INFO", "setup.cfg"}
    assert not [name for name in found if re.search(r"\.py[cod]$|(^|/)\.", name)]


def test_the_source_distribution_s_tests_run(distributions: tuple[Path, Path]) -> None:
    unpacked, _ = distributions
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *QUICK_TESTS],
        cwd=unpacked,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not ran.returncode, ran.stdout[-3000:] + ran.stderr[-3000:]
    assert re.search(r"\d+ passed", ran.stdout)


def test_the_wheel_holds_the_package_and_nothing_else(distributions: tuple[Path, Path]) -> None:
    _, path = distributions
    with zipfile.ZipFile(path) as wheel:
        found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    package = ROOT / "paddlenlp_codegen_task"
    assert found == {f"{package.name}/{name}" for name in files_of(package)}


WITHOUT_PADDLE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("paddle", "paddlenlp"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from paddlenlp_codegen_task import CodeGenerator

with CodeGenerator.from_pretrained("builtin", home_path=sys.argv[1]) as generator:
    [[completion]] = generator.generate("def add(a, b):", decode_strategy="greedy_search")
    print(completion.text.strip())
try:
    CodeGenerator.from_pretrained("builtin", home_path=sys.argv[1], engine="paddle")
except ValueError as error:
    print(error)
"""


def test_without_paddle_models_are_exported_and_run(tmp_path: Path) -> None:
    """Where neither Paddle nor PaddleNLP is installed; Taskflow alone needs them."""
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_PADDLE, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not ran.returncode, ran.stderr
    text, refusal = ran.stdout.splitlines()
    assert text == "return a + b"
    assert refusal.startswith("engine 'paddle' needs: pip install paddlepaddle (No module named")
