"""Where a model's files are: in a folder, in the package, or on a hub; and its adapter's."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.load_options import LoadOptions
from paddlenlp_codegen_task.model.adapter import Adapter, open_adapter
from paddlenlp_codegen_task.model.names import BUILTIN, DEFAULT_MODEL

logger = logging.getLogger(__name__)

BUILTIN_FOLDER = Path(__file__).parent / BUILTIN

# Huggingface_hub's own, which looks at a name only after it has looked for the model.
_REPOSITORY = re.compile(r"(\b[\w\-.]+\b/)?\b[\w\-.]{1,96}\b", re.ASCII)


def find(name_or_path: str | Path | None, options: LoadOptions) -> tuple[str, Path]:
    """The name and checkpoint folder of what is asked for."""
    if name_or_path is None:
        return _find_default(options)
    if name_or_path == BUILTIN:
        if options.from_hf_hub:
            raise ValueError("from_hf_hub=True: the built-in model is not on the hub")
        return BUILTIN, BUILTIN_FOLDER
    folder = Path(name_or_path).expanduser()
    if options.from_hf_hub:
        if not isinstance(name_or_path, str) or not _REPOSITORY.fullmatch(name_or_path):
            raise ValueError(f"from_hf_hub=True needs a repository's name, got {short(folder)}")
    elif folder.is_dir():
        return folder.resolve().name, folder
    elif not isinstance(name_or_path, str) or _is_path(name_or_path):
        raise FileNotFoundError(f"task_path: there is no folder {short(folder)}")
    from paddlenlp_codegen_task.model import hub  # what downloads takes a while to import

    found = hub.fetch(
        name_or_path,
        from_hf_hub=options.from_hf_hub,
        home=options.home,
        qkv_groups=options.qkv_groups,
    )
    return name_or_path, found


@contextmanager
def opened_adapter(options: LoadOptions) -> Iterator[Adapter | None]:
    """The adapter that is asked for, from a folder or the hub; None if there is none."""
    if options.adapter is None:
        yield None
        return
    folder = Path(options.adapter).expanduser()
    if not folder.is_dir():
        name = str(options.adapter)
        if not _REPOSITORY.fullmatch(name) or "/" not in name:
            raise FileNotFoundError(f"adapter: there is no folder {short(folder)}")
        from paddlenlp_codegen_task.model import hub  # what downloads takes a while to import

        folder = hub.fetch_adapter(name)
    with open_adapter(folder) as adapter:
        yield adapter


def short(folder: Path) -> str:
    """A path, as errors show it."""
    return checks.line(str(folder), 200)


def _find_default(options: LoadOptions) -> tuple[str, Path]:
    """The best model that is here or can be had, with a warning if that is the built-in one."""
    from paddlenlp_codegen_task.model import hub

    try:
        found = hub.fetch(DEFAULT_MODEL, from_hf_hub=options.from_hf_hub, home=options.home)
    except hub.DownloadError as error:
        logger.warning("The small built-in model runs, good for trying things out only: %s", error)
        return BUILTIN, BUILTIN_FOLDER
    return DEFAULT_MODEL, found


def _is_path(name: str) -> bool:
    """Whether this can only be a folder: models are named "owner/model"."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1
