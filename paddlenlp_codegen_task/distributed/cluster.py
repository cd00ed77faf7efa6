"""The cluster that work runs on."""

from __future__ import annotations

import logging

import ray

from paddlenlp_codegen_task import checks


def connect(address: str) -> None:
    """Have what follows run on a cluster.

    Args:
        address: of its head, "HOST:PORT"; "auto" for the one that runs on this machine.

    Raises:
        ConnectionError: there is none.
    """
    try:
        ray.init(address=address, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = checks.line(str(error).partition("\n")[0], 200)
        raise ConnectionError(
            f"--ray {checks.shown(address)}: there is no cluster ({reason}): `ray start --head` "
            "starts one on this machine, `ray start --address=HOST:6379` adds others to it"
        ) from error
