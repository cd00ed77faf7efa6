"""What all tests share. No test touches the network, or the home of whoever runs them."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from paddlenlp_codegen_task import CodeGenerator

_user_home = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    # Before anything is imported: most libraries look at these once. One thread, as the models of
    # tests are so small that threads would wait for each other more than they compute.
    folder = config.stash[_user_home] = tempfile.mkdtemp(prefix="codegen-tests-")
    os.environ.update(
        HOME=folder,
        HF_HOME=f"{folder}/huggingface",
        PPNLP_HOME=f"{folder}/paddlenlp",
        PPNLP_ENDPOINT="http://127.0.0.1:9",
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
        OMP_NUM_THREADS="1",
        # What Ray leaves behind of one test would connect to the cluster of another.
        RAY_ENABLE_AUTO_CONNECT="0",
    )
    os.makedirs(os.environ["PPNLP_HOME"])
    # A shell has what runs in the background ignore these, and processes of tests would inherit it.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[_user_home], ignore_errors=True)


@pytest.fixture(scope="session")
def home_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home for exports that tests share: each model is exported once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def builtin(home_path: Path) -> Iterator[CodeGenerator]:
    """The model that ships with the package, in float32 on the CPU."""
    from paddlenlp_codegen_task import CodeGenerator

    options = {"home_path": home_path, "device": "cpu", "num_threads": 1}
    with CodeGenerator.from_pretrained("builtin", **options) as generator:
        yield generator
