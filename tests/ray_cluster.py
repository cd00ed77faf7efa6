"""A Ray cluster of two nodes on this machine, and generators over a fake runtime for it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from fake_generator import fake_generator
from ray.cluster_utils import Cluster

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.distributed.cluster import connected
from paddlenlp_codegen_task.distributed.model import Files, Shipped
from paddlenlp_codegen_task.load_options import LoadOptions

TESTS = Path(__file__).resolve().parent
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}


@contextmanager
def two_nodes() -> Iterator[Cluster]:
    """A cluster that this process is a driver of, on ports and in a folder of its own."""
    # Ray's sockets are in there, whose paths have at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.mkdir(f"{folder}/ray")
        before = {name: os.environ.get(name) for name in ("PYTHONPATH", "RAY_TMPDIR")}
        # What nodes begin with, their workers have.
        paths = [str(TESTS.parent), str(TESTS), *filter(None, [before["PYTHONPATH"]])]
        os.environ.update(PYTHONPATH=os.pathsep.join(paths), RAY_TMPDIR=folder)
        try:
            head = {**NODE, "include_dashboard": False, "temp_dir": f"{folder}/ray"}
            cluster = Cluster(initialize_head=True, head_node_args=head)
            try:
                cluster.add_node(**NODE)
                with connected(cluster.address):
                    yield cluster
            finally:
                cluster.shutdown()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


@dataclass(frozen=True)
class FakeLoading:
    """Makes a worker's generator, whose steps take a while; notes process and node in a folder."""

    folder: Path
    seconds: float = 0.0
    error: str = ""

    def __call__(self) -> CodeGenerator:
        """Make it."""
        note = self.folder / f"pid-{os.getpid()}"
        note.write_text(ray.get_runtime_context().get_node_id(), encoding="utf-8")
        home = Path(tempfile.mkdtemp(dir=self.folder))
        generator = fake_generator(home)

        def step(_slot: int, _rows: Any, output: Any) -> Any:
            time.sleep(self.seconds)
            if self.error:
                raise MemoryError(self.error)
            return output

        generator.runtime.on_forward = step  # type: ignore[attr-defined]
        return generator

    def workers(self) -> dict[int, str]:
        """The processes that have made one, and their nodes."""
        notes = self.folder.glob("pid-*")
        return {int(note.name.removeprefix("pid-")): note.read_text() for note in notes}


class CountingFiles(Files):
    """Files that know how often each has been asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._asked: list[str] = []

    def parts(self, name: str) -> list[Any]:
        self._asked.append(name)
        return super().parts(name)

    def asked(self) -> tuple[list[str], int]:
        """Those names, and how many objects the store has got."""
        return self._asked, sum(map(len, self._parts.values()))


def received(shipped: Shipped, home: Path) -> tuple[Path, int]:
    """Where a worker of a node with this home has an export, and which process it is."""
    return shipped.here(LoadOptions(home_path=home)), os.getpid()
