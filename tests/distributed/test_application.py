"""What a server on a cluster is built of: the same options as on one machine."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from paddlenlp_codegen_task.cli.serve import serve
from paddlenlp_codegen_task.distributed import application
from paddlenlp_codegen_task.distributed.application import LOADING, Arguments, app
from paddlenlp_codegen_task.options import LoadingOptions
from paddlenlp_codegen_task.serving import keys

# Where to listen is Serve's to know, and which cluster, whoever starts it there.
ELSEWHERE = {"host", "port", "ray"}


def test_takes_the_options_of_the_command():
    command = inspect.signature(serve).parameters
    assert set(command) - ELSEWHERE == set(Arguments.model_fields)
    for name, field in Arguments.model_fields.items():
        ours = field.get_default(call_default_factory=True)
        theirs = command[name].default
        assert (ours or None) == (theirs or None) or name == "batch_size", name
    assert set(LOADING) <= {"model"} | set(LoadingOptions.__annotations__)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"models": "builtin"}, "models\n  Extra inputs are not permitted"),
        ({"max_n": "many"}, "max_n\n  Input should be a valid integer"),
        ({"no_api_key": True, "truncation": "x"}, "truncation must be one of"),
        ({"no_api_key": True, "device": "gpu:1"}, "device must be gpu, cpu or auto on a cluster"),
        ({"no_api_key": True, "engine": "steam"}, "engine must be one of"),
        ({"model": "builtin"}, "api_key: there is no key, and other machines can reach"),
        ({"api_key_file": "/no/file"}, "--api-key-file: cannot read '/no/file'"),
    ],
)
def test_refuses(args: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(keys.VARIABLE, raising=False)
    with pytest.raises((ValueError, OSError), match=message):
        app(args)


def test_paths_of_this_machine_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    given = {"model": "mine", "adapter": "organisation/adapter", "home_path": "/on/the/nodes"}
    assert application._checked(given) == {**given, "model": str(tmp_path / "mine")}
