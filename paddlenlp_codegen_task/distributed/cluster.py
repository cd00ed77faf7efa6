"""A Ray cluster that is there: connecting to it, and how many workers it has room for."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

# Whatever still asks Ray something when a driver has ended would start a cluster otherwise.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")

import ray

from paddlenlp_codegen_task import checks

logger = logging.getLogger(__name__)

_SECONDS = 10.0  # that connecting may take

_ADDRESS = re.compile(r"([^\s:/]+|\[[0-9a-fA-F:]+\]):[0-9]{1,5}")
_WORKERS = re.compile("([0-9]{1,6})(?::([0-9]{1,6}))?")


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be a driver of a cluster for a while; where this process is one already, it stays so.

    Args:
        address: "auto" for the cluster that runs on this machine, else HOST:PORT of its head.

    Raises:
        ValueError: the address can be none.
        ConnectionError: nothing answers there.
    """
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)  # as Ray has it
    address = _checked(address)
    if ray.is_initialized():
        yield
        return
    if address != "auto":
        _ask(address)
    try:
        with _native_code_quiet():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address == "auto":
            message = "there is no Ray cluster on this machine: start one with `ray start --head`"
            raise ConnectionError(f"ray: {message}") from error
        raise ConnectionError(f"ray: {address}: {checks.line(str(error), 200)}") from error
    # What goes wrong is raised, too; the console would have it with all its traces.
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(sys.stderr):  # where Ray writes of workers that have died
            yield
    finally:
        ray.shutdown()


@contextmanager
def _native_code_quiet() -> Iterator[None]:
    """Have Ray's native code say nothing: what matters of it is raised as an error, too.

    It reads its level from the environment, and tells so on standard error.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        before = os.dup(2)
    except OSError:  # closed: then nobody hears it anyway
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def _ask(address: str) -> None:
    """Raise a ConnectionError if nothing answers at an address: Ray would ask for ever."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(
            f"ray: nothing answers at {address} ({error}): give the address that "
            "`ray start --head` told"
        ) from error


def _checked(address: str) -> str:
    """An address that a driver may connect to.

    Raises:
        TypeError, ValueError: it is none.
    """
    given = checks.text(address)
    if given is None:
        raise TypeError(f"ray must be auto or HOST:PORT, got {checks.shown(address)}")
    if "://" in given:
        raise ValueError(
            f"ray: {checks.shown(given)} is a client's address: run the command on a machine of "
            "the cluster, with auto or HOST:PORT"
        )
    if given != "auto" and not _ADDRESS.fullmatch(given):
        raise ValueError(f"ray must be auto or HOST:PORT, got {checks.shown(given)}")
    return given


@dataclass(frozen=True)
class Pool:
    """Workers of a run.

    Attributes:
        least, most: how many there are; between them Ray decides, by what waits.
        cpus, gpus: what each takes of its node; cpus are the threads of its model, too.
        on_a_node: how many may share a node, at most.
    """

    least: int
    most: int
    cpus: int
    gpus: int
    on_a_node: int

    @classmethod
    def of(
        cls,
        workers: str | int | None,
        threads: int | None,
        on_gpu: bool,
        called: str = "ray_workers",
    ) -> Pool:
        """What is asked for, and what the cluster has room for where nothing is.

        Args:
            workers: N, or MIN:MAX; None for as many as the cluster's nodes have room for.
            threads: of each worker's model; None for all of the smallest node's CPUs, and 1 for
                a model on a GPU.
            on_gpu: whether each has a GPU.
            called: what the option of `workers` is called.

        Raises:
            TypeError, ValueError: `workers` is neither.
        """
        nodes = [_resources(node) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        cpus = [int(node.get("CPU", 0)) for node in nodes]
        if threads is None:
            threads = 1 if on_gpu else min((count for count in cpus if count), default=1)
        room = [
            min(count // threads, int(node.get("GPU", 0))) if on_gpu else count // threads
            for node, count in zip(nodes, cpus, strict=True)
        ]
        if not any(room):
            gpu = " and a GPU" if on_gpu else ""
            logger.warning("waiting for a node with %d CPUs%s: the cluster has none", threads, gpu)
        all_of_it = max(1, sum(room))
        least, most = (all_of_it,) * 2 if workers is None else parsed_workers(workers, called)
        return cls(least, most, threads, int(on_gpu), max(1, min(most, max(room))))


def parsed_workers(workers: str | int, called: str = "ray_workers") -> tuple[int, int]:
    """The least and the most workers that an option asks for.

    Raises:
        ValueError: it is neither N nor MIN:MAX.
    """
    match = _WORKERS.fullmatch(str(workers))
    least = int(match[1]) if match else 0
    most = int(match[2]) if match and match[2] else least
    if not 1 <= least <= most:
        raise ValueError(f"{called} must be N or MIN:MAX, from 1 up, got {checks.shown(workers)}")
    return least, most


def _resources(node: dict[str, Any]) -> dict[str, float]:
    found: dict[str, float] = node["Resources"]
    return found
