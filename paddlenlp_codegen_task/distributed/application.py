"""A server as an application of Ray Serve: what `serve --ray`, `serve run` and KubeRay start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.schema import LoggingConfig

from paddlenlp_codegen_task.distributed.cluster import Pool
from paddlenlp_codegen_task.distributed.deployment import Ingress, Model
from paddlenlp_codegen_task.load_options import LoadOptions
from paddlenlp_codegen_task.serving import keys
from paddlenlp_codegen_task.serving.settings import Settings

BATCH_SIZE = 32  # sequences that run at once in a replica
LAST_WORDS = 5.0  # seconds that the door has to tell of replicas whose time to end is over
DOOR_FOR = 8  # replicas that one process at the door serves
WAIT_LOOP = 0.5  # seconds between two looks whether a replica that is to end has ended
# Those of loading that may be paths: of this machine, they are made whole.
_PATHS = ("model", "adapter", "draft_model", "home_path")
_QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


class Arguments(BaseModel):
    """What an application is built of, named and meant as the options of `serve`."""

    model_config = ConfigDict(extra="forbid")

    replicas: str | int | None = None

    model: str | None = None
    engine: str | None = None
    precision: str | None = None
    kv_precision: str | None = None
    device: str | None = None
    from_hf_hub: bool | None = None
    draft_model: str | None = None
    adapter: str | None = None
    qkv_groups: int | None = None
    home_path: str | None = None
    cuda_graph: bool | None = None
    batch_size: int = Field(BATCH_SIZE, ge=1)
    num_threads: int | None = Field(None, ge=1)
    kv_cache_bytes: int | None = None
    prefix_cache_bytes: int | None = None

    api_key: list[str] = Field(default_factory=list)
    api_key_file: str | None = None
    no_api_key: bool = False
    cors_origin: list[str] = Field(default_factory=list)

    max_waiting: int = Field(256, ge=0)
    request_timeout: float | None = Field(None, ge=0)
    drain_seconds: float = Field(30.0, ge=0)
    overflow: Literal["error", "truncate_left"] = "error"
    truncation: str | None = None
    no_token_healing: bool = False
    max_body_bytes: int = Field(4 << 20, ge=1)
    max_prompts: int = Field(256, ge=1)
    max_n: int = Field(64, ge=1)
    log_level: Literal["debug", "info", "warning", "error"] = "info"


# Options of `CodeGenerator.from_pretrained` among them.
LOADING = (
    *("model", "engine", "precision", "kv_precision", "device", "from_hf_hub", "draft_model"),
    *("adapter", "qkv_groups", "home_path", "cuda_graph", "batch_size", "num_threads"),
    *("kv_cache_bytes", "prefix_cache_bytes"),
)


def app(args: Mapping[str, Any]) -> serve.Application:
    """Build the application; `serve run` and KubeRay call this.

    Args:
        args: fields of `Arguments`.

    Raises:
        ValueError, TypeError, OSError: an argument cannot be; it is named.
    """
    given = Arguments.model_validate(args)
    settings = Settings(
        keys.collect(
            given.api_key,
            Path(given.api_key_file) if given.api_key_file else None,
            os.environ.get(keys.VARIABLE, ""),
        ),
        overflow=given.overflow,
        max_waiting=given.max_waiting,
        request_timeout=given.request_timeout or None,
        drain_seconds=given.drain_seconds,
        max_body_bytes=given.max_body_bytes,
        max_prompts=given.max_prompts,
        max_n=given.max_n,
        cors_origins=tuple(given.cors_origin),
        truncation=given.truncation,
        token_healing=not given.no_token_healing,
    )
    if not (settings.api_keys or given.no_api_key):
        raise ValueError(
            "api_key: there is no key, and other machines can reach a cluster's server: give "
            f"api_key_file, api_key or {keys.VARIABLE}, or no_api_key to let everybody in"
        )
    loading = {name: getattr(given, name) for name in LOADING if getattr(given, name) is not None}
    return build(loading, settings, given.replicas, given.log_level)


def build(
    loading: Mapping[str, Any], settings: Settings, replicas: str | int | None, log_level: str
) -> serve.Application:
    """Put the deployments together, for the cluster that this process is connected to.

    Args:
        loading: as `deployment.load` takes it. `num_threads` are the CPUs that a replica takes, all
            of the smallest node's by default; with `device="gpu"` each takes a GPU.
        settings: what is allowed.
        replicas: N, or MIN:MAX for as many as what waits needs; None for as many as the cluster has
            room for.
        log_level: "debug", "info" (a line a request), "warning" or "error".

    Raises:
        ValueError, TypeError: an option cannot be.
    """
    loading = _checked({"batch_size": BATCH_SIZE, **loading})
    on_gpu = loading.get("device") == "gpu"
    pool = Pool.of(replicas, loading.get("num_threads"), on_gpu, "replicas")
    batch_size = loading["batch_size"]
    model = serve.deployment(
        name="Model",
        # A few more than run, so that one is there when a row is free. Others go to the replicas
        # that follow; where those are full, too, they wait at the door.
        max_ongoing_requests=batch_size + max(1, batch_size // 4),
        max_queued_requests=max(settings.max_waiting, 1),
        request_router_config=RequestRouterConfig(
            request_router_class=ConsistentHashRouter  # type: ignore[arg-type]
        ),
        ray_actor_options={"num_cpus": pool.cpus, "num_gpus": pool.gpus},
        graceful_shutdown_timeout_s=settings.drain_seconds,
        graceful_shutdown_wait_loop_s=WAIT_LOOP,
        logging_config=_QUIET,
        **_number(pool, batch_size),
    )(Model)
    door = serve.deployment(
        name="Ingress",
        num_replicas=min(pool.most, 2 + (pool.most - 1) // DOOR_FOR),  # one may die
        max_ongoing_requests=10_000,  # each waits for a replica, and few may
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=settings.drain_seconds + LAST_WORDS,
        graceful_shutdown_wait_loop_s=WAIT_LOOP,
        logging_config=_QUIET,
    )(serve.ingress()(Ingress))
    within = replace(settings, api_keys=(), cors_origins=())
    bound = model.bind(loading, pool, within, log_level)
    return door.bind(bound, settings, log_level)


def _checked(loading: Mapping[str, Any]) -> dict[str, Any]:
    """Options of loading, checked as far as they can be without the model; paths made whole."""
    found = dict(loading)
    if str(found.get("device", "")).startswith("gpu:"):
        raise ValueError("device must be gpu, cpu or auto on a cluster, which chooses the number")
    known = {one.name for one in fields(LoadOptions)}
    LoadOptions(**{name: value for name, value in found.items() if name in known})
    for name in _PATHS:
        path = os.path.expanduser(found.get(name, ""))
        if path and os.path.isdir(path):
            found[name] = os.path.abspath(path)
    return found


def _number(pool: Pool, batch_size: int) -> dict[str, Any]:
    """How many replicas there are, in Serve's words: more as soon as requests wait for a row."""
    if pool.least == pool.most:
        return {"num_replicas": pool.least}
    scaling = AutoscalingConfig(
        min_replicas=pool.least,
        max_replicas=pool.most,
        target_ongoing_requests=batch_size,
    )
    return {"autoscaling_config": scaling}
