"""Runs a server on a cluster until it is told to stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ray import serve
from ray.exceptions import RayError
from ray.serve.context import _get_global_client

from paddlenlp_codegen_task import checks

NAME = "paddlenlp-codegen"
LOOK = 0.5  # seconds between two looks whether the application is there


@contextmanager
def deployed(application: serve.Application, host: str, port: int) -> Iterator[None]:
    """Have an application answer at a host and port of each node that has a part of it.

    One of the same name is replaced by it, its requests end first. At the end it is taken away, as
    soon as what runs has ended; and Serve with it, if it was not there before.

    Raises:
        ValueError: Serve runs already, and listens somewhere else.
        RuntimeError: the application does not come up.
    """
    # There is no public way to ask where Serve listens.
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is not None:
        options = client.http_config
        if (options.host, options.port) != (host, port):
            raise ValueError(
                f"--host, --port: Serve runs on this cluster already and listens at "
                f"{options.host}:{options.port}: give these, or end it by `serve shutdown`"
            )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        serve.start(proxy_location="EveryNode", http_options={"host": host, "port": port})
        serve.run(application, name=NAME)
        yield
    except RuntimeError as error:
        raise RuntimeError(_reason(error)) from error
    finally:
        # Ending Serve itself would cut off what is being answered.
        serve.delete(NAME, _blocking=False)
        while NAME in serve.status().applications:
            time.sleep(LOOK)
        if client is None:
            serve.shutdown()  # type: ignore[no-untyped-call]


def wait() -> None:
    """Wait as long as the application is there.

    Raises:
        RuntimeError: it is there no more: somebody has ended it, or the cluster.
    """
    while True:
        try:
            there = NAME in serve.status().applications
        except RayError as error:
            raise RuntimeError(f"the cluster is gone: {type(error).__name__}") from error
        if not there:
            raise RuntimeError("the application has been deleted by somebody else")
        time.sleep(LOOK)


def _reason(error: RuntimeError) -> str:
    """Why an application does not come up: the last line of the traceback of its replica."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return checks.line(lines[-1], 500) if lines else "the application does not come up"
