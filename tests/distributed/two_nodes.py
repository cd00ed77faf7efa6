"""A Ray cluster of two nodes on this machine, which is nobody else's."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MEMORY = 100 << 20  # bytes of each node's object store


@contextmanager
def two_nodes(**options: Any) -> Iterator[Any]:
    """Start it, with options of its nodes, and end it; yields ray's Cluster."""
    # Its sockets' paths must be short, and it is not to be found by who says "auto".
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    os.makedirs(f"{folder}/ray")
    before = os.environ.get("RAY_TMPDIR")
    os.environ["RAY_TMPDIR"] = folder
    try:
        from ray.cluster_utils import Cluster

        given = {"num_cpus": 2, "object_store_memory": MEMORY, **options}
        head = {**given, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            cluster.add_node(**given)
            cluster.wait_for_nodes()
            yield cluster
        finally:
            cluster.shutdown()
    finally:
        os.environ.pop("RAY_TMPDIR")
        if before is not None:
            os.environ["RAY_TMPDIR"] = before
        shutil.rmtree(folder, ignore_errors=True)
