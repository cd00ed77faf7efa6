"""Runs a server on a cluster until it is told to stop."""

from __future__ import annotations

import io
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, LoggingConfig, ProxyStatus

from paddlenlp_codegen_task import checks

logger = logging.getLogger(__name__)

NAME = "paddlenlp-codegen"
_ERROR = re.compile(r"^[\w.]*(?:Error|Exception)(?:\([\w.]*\))?: ")
ATTEMPTS = 3  # at starting Serve
LOOK = 0.5  # seconds between two looks at the application
LISTENS_WITHIN = 120.0  # seconds that nodes have to listen when the application runs


@contextmanager
def deployed(application: serve.Application, host: str, port: int) -> Iterator[None]:
    """Have an application answer at a host and port of each node that has a part of it.

    One of the same name is replaced by it, its requests end first. At the end it is taken away, as
    soon as what runs has ended; and Serve with it, if it was not there before.

    Raises:
        ValueError: Serve runs already, and listens somewhere else.
        RuntimeError: the application does not come up, or no node listens.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    # There is no public way to ask where Serve listens.
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is not None:
        options = client.http_config
        if (options.host, options.port) != (host, port):
            raise ValueError(
                f"--host, --port: Serve runs on this cluster already and listens at "
                f"{options.host}:{options.port}: give these, or end it by `serve shutdown`"
            )
    try:
        with _in_words():
            _start(host, port)
            target = serve.RunTarget(application, NAME)
            serve.run_many([target], wait_for_applications_running=False)
            _wait_until_it_runs()
            _wait_until_nodes_listen(host, port)
        yield
    finally:
        # Ending Serve itself would cut off what is being answered.
        with _in_words():
            serve.delete(NAME, _blocking=False)
            while _status() is not None:
                time.sleep(LOOK)
            if client is None:
                with redirect_stdout(io.StringIO()):  # Ray prints there that the controller dies
                    serve.shutdown()  # type: ignore[no-untyped-call]


def _start(host: str, port: int) -> None:
    """Start Serve, unless it runs.

    On a node that is at work it replaces a proxy that has not come up in time, and fails for that;
    but it goes on: the next attempt finds it running, and does not wait for the proxy.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            serve.start(
                proxy_location="EveryNode",
                http_options={"host": host, "port": port},
                logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
            )
            return
        except RayActorError:
            if attempt == ATTEMPTS:
                raise


@contextmanager
def _in_words() -> Iterator[None]:
    """Have what Ray and Serve raise be a RuntimeError that says what is wrong on one line."""
    try:
        yield
    except (RayError, RuntimeError) as error:
        raise RuntimeError(_reason([str(error)])) from error


def wait() -> None:
    """Wait as long as the application is there.

    Raises:
        RuntimeError: it is there no more: somebody has ended it, or the cluster is gone.
    """
    while True:
        with _in_words():
            there = _status() is not None
        if not there:
            raise RuntimeError("the application has been deleted by somebody else")
        time.sleep(LOOK)


def _status() -> Any:
    """How the application is; None if there is none."""
    return serve.status().applications.get(NAME)


def _wait_until_it_runs() -> None:
    told = False
    while (status := _status()) is None or status.status != ApplicationStatus.RUNNING:
        messages = [one.message for one in status.deployments.values()] if status else []
        if status is not None and status.status == ApplicationStatus.DEPLOY_FAILED:
            raise RuntimeError(_reason(messages or [status.message]))
        if not told:  # what Serve says of replicas that take long
            for message in filter(None, messages):
                logger.warning("%s", checks.line(message, 500))
                told = True
        time.sleep(LOOK)


def _wait_until_nodes_listen(host: str, port: int) -> None:
    """Wait for the proxies: an application runs without, and replicas may be there before them."""
    deadline = time.monotonic() + LISTENS_WITHIN
    while True:
        gone = (ProxyStatus.DRAINING, ProxyStatus.DRAINED)  # of nodes that have no replica
        proxies = [one for one in serve.status().proxies.values() if one not in gone]
        missing = sum(one is not ProxyStatus.HEALTHY for one in proxies)
        if proxies and not missing:
            return
        if time.monotonic() > deadline:
            break
        time.sleep(LOOK)
    if missing == len(proxies):
        raise RuntimeError(
            f"--host, --port: no node listens at {host}:{port} after {LISTENS_WITHIN:.0f} seconds"
        )
    logger.warning("%d of %d nodes do not listen at %s:%d yet", missing, len(proxies), host, port)


def _reason(messages: list[str]) -> str:
    """Why an application does not come up: the end of the traceback of a replica's."""
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    last = lines[-1] if lines else "Ray does not say why"
    return checks.line(_ERROR.sub("", last), 500)
