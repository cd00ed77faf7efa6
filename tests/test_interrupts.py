"""Ctrl+C while native modules are imported is neither a missing package nor a bad option."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from paddlenlp_codegen_task import interrupts
from paddlenlp_codegen_task.cli.base import told
from paddlenlp_codegen_task.runtime import engines

# As pybind11's modules do where Ctrl+C ends their initialization.
INITIALIZATION = """
try:
    raise KeyboardInterrupt
except KeyboardInterrupt as interrupt:
    raise ImportError("initialization failed") from interrupt
"""


@pytest.fixture
def interrupted_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "interrupted_while_imported.py").write_text(INITIALIZATION)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return "interrupted_while_imported"


def test_an_engine_s_import(interrupted_module: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(engines.MODULES, "onnxruntime", interrupted_module)
    with pytest.raises(KeyboardInterrupt):
        engines.load_engine("onnxruntime")


def test_an_engine_that_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(engines.MODULES, "onnxruntime", "there_is_no_such_module")
    with pytest.raises(ValueError, match="needs: pip install onnxruntime onnx"):
        engines.load_engine("onnxruntime")


def test_a_command_s_import(interrupted_module: str):
    def command() -> None:
        with told():
            try:
                __import__(interrupted_module)
            except ImportError as error:
                raise ValueError("this needs a package") from error

    with pytest.raises(KeyboardInterrupt):
        command()


def test_what_came_before_is_no_cause():
    """An error after a Ctrl+C that somebody has dealt with stays one."""
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(ValueError, match="bad"), interrupts.not_taken_for_errors():
            raise ValueError("bad")  # noqa: B904 (its context is what this is about)
