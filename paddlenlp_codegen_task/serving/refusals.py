"""Errors, each in the words of the dialect that the client speaks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from paddlenlp_codegen_task.serving.protocol import RequestError

if TYPE_CHECKING:
    from starlette.types import Scope

# https://github.com/huggingface/text-generation-inference, router/src/infer/mod.rs and server.rs:
# what is wrong with a request is 422 "validation", a full queue 429 "overloaded". Its clients
# (huggingface_hub's InferenceClient) raise an error class by error_type.
TGI_TYPES = {400: "validation", 413: "validation", 429: "overloaded", 503: "overloaded"}
TGI_PATHS = frozenset({"/", "/generate", "/generate_stream", "/info"})

_WORD = re.compile(r"\w+")


def refusal(scope: Scope, error: RequestError) -> tuple[int, dict[str, Any]]:
    """The status and body that tell whoever asked of an error.

    Args:
        scope: of the request, as ASGI has it.
        error: what is wrong with it, or with the server.
    """
    spoken = dialect(scope["path"])
    if spoken == "ollama":
        return error.status, ollama_error(error)
    if spoken == "tgi":
        return (422 if error.status == 400 else error.status), tgi_error(error)
    body = error.body()
    if _agent(scope).startswith(b"llm-ls/"):
        # llm-ls (crates/llm-ls/src/backend.rs, OpenAIError) reads no other error than
        # {detail: [{loc, msg, type}]}; all else is "data did not match any variant" to its user.
        # Its `loc` is one word or number, where FastAPI's own is a list.
        detail = {"loc": error.param or "body", "msg": str(error), "type": error.kind}
        body["detail"] = [detail]
    return error.status, body


def dialect(path: str) -> Literal["openai", "tgi", "ollama"]:
    """What who asks at this path speaks."""
    if path.startswith("/api/"):
        return "ollama"
    return "tgi" if path in TGI_PATHS or path.startswith("/models/") else "openai"


def tgi_error(error: RequestError) -> dict[str, Any]:
    """An error of text-generation-inference; llm-ls's `tgi` reads its `error`."""
    return {"error": str(error), "error_type": TGI_TYPES.get(error.status, "generation")}


def ollama_error(error: RequestError) -> dict[str, Any]:
    """An error of Ollama (server/routes.go); clients show it as it is."""
    return {"error": str(error)}


def renamed(error: RequestError, names: Mapping[str, str]) -> RequestError:
    """An error that calls fields as a dialect does.

    Args:
        error: what is wrong, by the names of OpenAI's fields.
        names: the dialect's name of each field that has another one there.
    """
    message = _WORD.sub(lambda word: names.get(word[0], word[0]), str(error))
    param = None if error.param is None else names.get(error.param, error.param)
    return RequestError(message, param, error.status, error.kind, error.code)


def _agent(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"user-agent":
            return bytes(value)
    return b""
