"""A server over the built-in model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from running_server import Running, running

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.serving.settings import Settings


@pytest.fixture(scope="session")
def new_generator(home_path: Path) -> Iterator[Callable[..., CodeGenerator]]:
    """Loads the built-in model in float32 on ONNX Runtime, with options; closed at the end."""
    with ExitStack() as opened:

        def load(**options: Any) -> CodeGenerator:
            generator = CodeGenerator.from_pretrained(
                "builtin",
                engine="onnxruntime",
                device="cpu",
                num_threads=1,
                home_path=home_path,
                **options,
            )
            return opened.enter_context(generator)

        yield load


@pytest.fixture(scope="session")
def generator(new_generator: Callable[..., CodeGenerator]) -> CodeGenerator:
    """One that tests share: 8 rows at once, and a prefix cache."""
    return new_generator(batch_size=8, prefix_cache_bytes=64 << 20)


@pytest.fixture(scope="session")
def server(generator: CodeGenerator) -> Iterator[Running]:
    """One that tests share. It leaves prompts as they are: healing has tests of its own."""
    with running(generator, Settings(token_healing=False)) as one:
        yield one


@pytest.fixture
def serve(generator: CodeGenerator) -> Iterator[Callable[..., Running]]:
    """Starts servers with settings of their own over the shared generator, or another one."""
    with ExitStack() as opened:

        def start(settings: Settings | None = None, over: CodeGenerator | None = None) -> Running:
            return opened.enter_context(running(over or generator, settings))

        yield start
