"""A Ray cluster whose nodes are this machine, and generators over a fake runtime for it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray
from fake_generator import fake_generator
from ray.cluster_utils import Cluster

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.distributed.cluster import connected
from paddlenlp_codegen_task.distributed.model import Files, Shipped
from paddlenlp_codegen_task.load_options import LoadOptions

T = TypeVar("T")

TESTS = Path(__file__).resolve().parent
OF_NODES: dict[str, Any] = {"object_store_memory": 80 << 20}
# Fewer processes at the start, when a node waits 15 seconds for its agents.
OF_HEAD: dict[str, Any] = {
    "include_dashboard": False,
    "include_log_monitor": False,
    "no_monitor": True,
}


@contextmanager
def nodes(*cpus: int, connect: bool = True) -> Iterator[Cluster]:
    """A cluster on ports and in a folder of its own.

    Args:
        *cpus: how many each node has; the first is the head.
        connect: whether this process is to be a driver of it, on the head.
    """
    # Ray's sockets are in there, whose paths have at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.mkdir(f"{folder}/ray")
        before = {name: os.environ.get(name) for name in ("PYTHONPATH", "RAY_TMPDIR")}
        # What nodes begin with, their workers have.
        paths = [str(TESTS.parent), str(TESTS), *filter(None, [before["PYTHONPATH"]])]
        os.environ.update(PYTHONPATH=os.pathsep.join(paths), RAY_TMPDIR=folder)
        try:
            head = {"num_cpus": cpus[0], "temp_dir": f"{folder}/ray", **OF_HEAD}
            cluster = patiently(partial(Cluster, True, head_node_args={**OF_NODES, **head}))
            try:
                for count in cpus[1:]:
                    patiently(partial(cluster.add_node, num_cpus=count, **OF_NODES))
                with connected(cluster.address) if connect else nullcontext():
                    yield cluster
            finally:
                cluster.shutdown()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def two_nodes() -> AbstractContextManager[Cluster]:
    """A cluster of two nodes with a CPU each, of which this process is a driver."""
    return nodes(1, 1)


def patiently(begin: Callable[[], T]) -> T:
    """Begin a node, again where a machine that is at work has given it too little time."""
    for _ in range(4):
        try:
            return begin()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return begin()


def lose_node(cluster: Cluster) -> None:
    """Have a node die at once with all that runs there, and another one come."""
    node = max(cluster.worker_nodes, key=lambda one: len(workers_of(one)))
    cluster.remove_node(node, allow_graceful=False)
    patiently(partial(cluster.add_node, num_cpus=1, **OF_NODES))


def workers_of(node: Any) -> list[int]:
    """The processes of a node that hold a generator."""
    raylet = node.all_processes["raylet"][0].process.pid
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == raylet and b"MapWorker" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it has just ended
            continue
    return found


@dataclass(frozen=True)
class FakeLoading:
    """Makes a worker's generator, whose steps take a while; notes process and node in a folder."""

    folder: Path
    seconds: float = 0.0
    error: str = ""
    batch_size: int = 4

    def __call__(self) -> CodeGenerator:
        """Make it."""
        note = self.folder / f"pid-{os.getpid()}"
        note.write_text(ray.get_runtime_context().get_node_id(), encoding="utf-8")
        home = Path(tempfile.mkdtemp(dir=self.folder))
        generator = fake_generator(home, self.batch_size)

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


class Receiver:
    """A worker, in a process of its own."""

    def receive(self, shipped: Shipped, home: Path) -> tuple[Path, int]:
        """Where a worker of a node with this home has an export, and which process it is."""
        return shipped.here(LoadOptions(home_path=home)), os.getpid()
