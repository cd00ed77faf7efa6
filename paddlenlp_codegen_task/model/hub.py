"""Gets a model by name: from PaddleNLP's community server, or from the Hugging Face hub.

The transfer is PaddleNLP's and huggingface_hub's own. This module decides which files a model
needs and in which order, and turns whatever goes wrong into one line that says what to do.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from filelock import FileLock

from paddlenlp_codegen_task import interrupts
from paddlenlp_codegen_task.files import is_file_name, read_json
from paddlenlp_codegen_task.model import names
from paddlenlp_codegen_task.model.config import CodeGenConfig

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 2.0  # to one address of a host
REACH_SECONDS = 4.0  # to the host: name look-up and all its addresses


class DownloadError(OSError):
    """A model could not be fetched; the message names the model, the cause and the way out."""


class _Lacking(DownloadError):
    """One source is out of reach or does not have the model; another may."""


@dataclass
class _PaddleServer:
    """PaddleNLP's community server and its cache: <home>/models/<name>/, as PaddleNLP keeps it."""

    name: str
    cache: Path
    endpoint: str
    label = "PaddleNLP's server"

    @property
    def folder(self) -> Path:
        return self.cache / self.name

    def local(self, file: str) -> Path | None:
        return self.folder / file if (self.folder / file).is_file() else None

    def size(self, file: str) -> int | None:
        from paddlenlp.utils.download.bos_download import bos_url, get_bos_file_metadata

        url = bos_url(self.name, file, endpoint=self.endpoint)
        size: int | None = get_bos_file_metadata(url).size
        unfinished = self.folder / f"{file}.incomplete"
        if size is not None and unfinished.is_file() and unfinished.stat().st_size >= size:
            unfinished.unlink()  # the client would ask for bytes past the end, and fail for ever
        return size

    def download(self, file: str) -> Path:
        from paddlenlp.utils.download.bos_download import bos_download

        where = {"cache_dir": self.cache, "endpoint": self.endpoint}
        return Path(bos_download(self.name, file, resume_download=True, **where))


@dataclass
class _HuggingFaceHub:
    """The Hugging Face hub and a cache in its layout."""

    name: str
    cache: Path
    endpoint: str
    revision: str = "main"
    label = "the Hugging Face hub"

    @property
    def folder(self) -> Path:
        return self.cache / f"models--{self.name.replace('/', '--')}"

    def local(self, file: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.name, file, cache_dir=self.cache, revision=self.revision)
        return Path(path) if isinstance(path, str) else None

    def size(self, file: str) -> int | None:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        url = hf_hub_url(self.name, file, revision=self.revision, endpoint=self.endpoint)
        return get_hf_file_metadata(url).size

    def download(self, file: str) -> Path:
        from huggingface_hub import hf_hub_download

        path = hf_hub_download(
            self.name, file, revision=self.revision, cache_dir=self.cache, endpoint=self.endpoint
        )
        self.revision = Path(path).parent.name  # the commit; all further files come from it too
        return Path(path)


_Source: TypeAlias = _PaddleServer | _HuggingFaceHub


def fetch(
    name: str, *, from_hf_hub: bool = False, home: Path, qkv_groups: int | None = None
) -> Path:
    """Return a folder with the model `name`, downloading what is missing.

    Args:
        name: one of KNOWN_MODELS, or with `from_hf_hub` any repository of the Hugging Face
            hub that holds a CodeGen checkpoint.
        from_hf_hub: use the Hugging Face hub only (HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE apply);
            else it serves if PaddleNLP's server is out of reach or lacks the model.
        home: PaddleNLP's home, usually ~/.paddlenlp; models are kept in `home`/models/<name>.
        qkv_groups: how its qkv_proj is stored, where its configuration does not tell.

    Raises:
        DownloadError: the name is unknown, no source in reach has the model, a transfer broke
            off (the next call resumes it), or the disk is full or not writable.
        ValueError: with `from_hf_hub`, `name` cannot be a repository's; what is there is no
            CodeGen model.
    """
    if (found := cached(name, from_hf_hub=from_hf_hub, home=home)) is not None:
        return found
    if not from_hf_hub and name not in names.KNOWN_MODELS:
        raise DownloadError(names.explain_unknown(name))
    failures: list[str] = []
    for source in _sources(name, from_hf_hub, home):
        try:
            _reach(source)
            if failures:
                logger.warning("%s: %s; trying %s", name, failures[-1], source.label)
            with _alone(source):
                return _download(source, qkv_groups)
        except _Lacking as error:
            failures.append(str(error))
    raise DownloadError(
        f"{name} cannot be downloaded: {'; '.join(failures)}. Try again with a network, "
        'or load a folder with the model (with Taskflow task_path="..."), or "builtin"'
    )


def fetch_adapter(name: str) -> Path:
    """Return a folder with the LoRA adapter `name`, a repository of the Hugging Face hub.

    Raises:
        DownloadError: as `fetch`.
    """
    from huggingface_hub import constants

    source = _HuggingFaceHub(name, Path(constants.HF_HUB_CACHE), constants.ENDPOINT)

    def first(get: Callable[[str], Path | None], files: tuple[str, ...]) -> Path | None:
        return next(filter(None, map(get, files)), None)

    configs, weights = (names.PEFT_CONFIG, names.LORA_CONFIG), names.ADAPTER_WEIGHTS
    if (here := first(source.local, configs)) is not None:
        folder = here.parent
        if any((folder / file).is_file() for file in weights):
            return folder
    try:
        _reach(source)
        with _alone(source):
            config = first(lambda file: _transfer(source, file), configs)
            if config is None:
                raise _Lacking(f"{source.label} does not have it, or no adapter by this name")
            if first(lambda file: _transfer(source, file), weights) is None:
                raise _Lacking(f"{source.label} lacks its weights")
            return config.parent
    except _Lacking as error:
        raise DownloadError(
            f"adapter: {name} cannot be downloaded: {error}. There is no folder of this name either"
        ) from error


@contextmanager
def _alone(source: _Source) -> Iterator[None]:
    """Keep others from downloading the same meanwhile: a second process then finds all there."""
    lock = source.cache / ".locks" / f"{source.name.replace('/', '--')}.fetch.lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            yield
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f"{source.name}: cannot write to {source.cache}: {error}") from error


def cached(name: str, *, from_hf_hub: bool = False, home: Path) -> Path | None:
    """Return the folder of a model that is wholly in PaddleNLP's or the hub's cache, else None."""
    if not from_hf_hub and name not in names.KNOWN_MODELS:
        return None
    for one in names.all_names(name):
        # The last is where PaddleNLP itself puts what it gets from the Hugging Face hub.
        last = _HuggingFaceHub(one, home / "models", "")
        for place in (*_sources(one, from_hf_hub, home), last):
            config = next(filter(None, map(place.local, names.CONFIG_FILES)), None)
            if config is not None and _complete(config.parent):
                return config.parent
    return None


def _sources(name: str, from_hf_hub: bool, home: Path) -> list[_Source]:
    from huggingface_hub import constants

    # PaddleNLP reads the same variable, but importing it takes seconds.
    endpoint = os.environ.get("PPNLP_ENDPOINT", "https://bj.bcebos.com/paddlenlp")
    hub = _HuggingFaceHub(name, Path(constants.HF_HUB_CACHE), constants.ENDPOINT)
    return [hub] if from_hf_hub else [_PaddleServer(name, home / "models", endpoint), hub]


def out_of_reach(home: Path) -> dict[str, str]:
    """Where models come from, and why it is out of reach now; "" where it is not.

    Takes REACH_SECONDS at most. Of what is reached by way of a proxy, nothing is known.
    """

    def ask(source: _Source) -> str:
        try:
            _reach(source)
        except _Lacking as error:
            return str(error)
        return ""

    sources = _sources(names.DEFAULT_MODEL, False, home)
    with ThreadPoolExecutor(len(sources)) as pool:
        return dict(zip((one.label for one in sources), pool.map(ask, sources), strict=True))


def _download(source: _Source, qkv_groups: int | None) -> Path:
    """Fetch a model's files, weights last: where they are complete, everything is."""
    config = next(filter(None, (_transfer(source, file) for file in names.CONFIG_FILES)), None)
    if config is None:
        raise _Lacking(f"{source.label} does not have it")
    CodeGenConfig.from_folder(config.parent, qkv_groups)  # before gigabytes of what cannot run
    for file in (*names.TOKENIZER_FILES, names.GENERATION_FILE):
        _transfer(source, file)
    weights = next(filter(None, (_transfer(source, file) for file in names.WEIGHT_FILES)), None)
    if weights is None or not all(_transfer(source, shard) for shard in _shards(weights)):
        raise _Lacking(f"{source.label} lacks its weights, or some of them")
    if not _complete(config.parent):
        raise _Lacking(f"{source.label} lacks its vocabulary")
    return config.parent


def _transfer(source: _Source, file: str) -> Path | None:
    """Download one file unless it is here already; None if the source does not have it."""
    if (found := source.local(file)) is not None:
        return found
    try:
        with interrupts.not_taken_for_errors():
            size = source.size(file)
    except (OSError, ImportError) as error:  # without Paddle, PaddleNLP's client does not import
        if str(error).startswith("404"):  # the one thing both clients' errors have in common
            return None
        reason = shorten(str(error), 160)
        raise _Lacking(f"{source.label} cannot be asked for {file} ({reason})") from error
    what = f"{source.name}: {file}"
    free = shutil.disk_usage(source.cache).free
    if size is not None and size - _unfinished_bytes(source) > free:
        raise DownloadError(f"{what} has {size:,} bytes, {source.cache} only {free:,} left")
    try:
        path = source.download(file)
    except (OSError, RuntimeError) as error:
        raise DownloadError(
            f"{what} broke off after {_unfinished_bytes(source):,} of {size or 0:,} bytes "
            f"({shorten(str(error), 160)}). Try again: it resumes there"
        ) from error
    actual = path.stat().st_size
    if size is not None and actual != size:
        # PaddleNLP's client appends a whole file to an unfinished one if a server knows no ranges.
        path.resolve().unlink()  # in the hub's cache, `path` is a link
        path.unlink(missing_ok=True)
        raise DownloadError(f"{what} came with {actual:,} bytes instead of {size:,}. Try again")
    return path


def _unfinished_bytes(source: _Source) -> int:
    return max((path.stat().st_size for path in source.folder.rglob("*.incomplete")), default=0)


def _shards(weights: Path) -> list[str]:
    """The files that an index names; none if `weights` is no index."""
    if not weights.name.endswith(".index.json"):
        return []
    weight_map = _read_object(weights).get("weight_map")
    shards = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not shards or not all(map(is_file_name, shards)):
        raise DownloadError(f"{weights} must name files in its own folder; delete it, try again")
    return sorted(set(shards))


def _complete(folder: Path) -> bool:
    """Whether a folder holds configuration, vocabulary and all weights of one format."""

    def has(*files: str) -> bool:
        return all((folder / file).is_file() for file in files)

    weights = next((folder / file for file in names.WEIGHT_FILES if has(file)), None)
    if weights is None or not (has("tokenizer.json") or has("vocab.json", "merges.txt")):
        return False
    try:
        return any(map(has, names.CONFIG_FILES)) and has(*_shards(weights))
    except OSError:
        return False


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except ValueError as error:
        raise DownloadError(f"{error}; delete it and try again") from None


def _reach(source: _Source) -> None:
    """Raise _Lacking within seconds if a source's host is out of reach; clients take longer."""
    from huggingface_hub import constants

    if isinstance(source, _HuggingFaceHub) and constants.HF_HUB_OFFLINE:
        raise _Lacking(f"{source.label} is switched off (HF_HUB_OFFLINE)")
    url = urlsplit(source.endpoint)
    host, port = url.hostname or "", url.port or (80 if url.scheme == "http" else 443)
    proxies = urllib.request.getproxies()
    if (url.scheme in proxies or "all" in proxies) and not urllib.request.proxy_bypass(host):
        return  # the proxy reaches it, or not: then the client says so
    problem = [f"no answer in {REACH_SECONDS:.0f} s"]

    def connect() -> None:
        try:
            socket.create_connection((host, port), CONNECT_SECONDS).close()
            problem[0] = ""
        except OSError as error:
            problem[0] = error.strerror or str(error)

    # In a thread, since looking up a name knows no timeout.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    if problem[0]:
        raise _Lacking(f"{source.label} ({host}) is out of reach: {problem[0]}")
