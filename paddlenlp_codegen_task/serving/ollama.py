"""The dialect of Ollama.

Fields, defaults and answers are those of its server (api/types.go, server/routes.go) as its clients
use them: Python's ollama; litellm, which takes a stream's text from all lines but the last, and
asks /api/show for the context's length; llm-ls (backend `ollama`), which sends {prompt, model,
stream: false} and reads `response` or `error`; Tabby's `ollama/completion`; Continue.

The model is a base model without a template, as if every request were `raw`: what only a chat
model can do is refused. Any name of a model is taken, as everywhere here.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from paddlenlp_codegen_task.decoding.events import Finished, Text
from paddlenlp_codegen_task.generator import CodeGenerator
from paddlenlp_codegen_task.serving.about import VERSION
from paddlenlp_codegen_task.serving.completions import INLINE, Completions, Job
from paddlenlp_codegen_task.serving.logprobs import LogProbs
from paddlenlp_codegen_task.serving.protocol import (
    FINISH_REASONS,
    CompletionRequest,
    Finite,
    RequestError,
    Stop,
)
from paddlenlp_codegen_task.serving.refusals import ollama_error, renamed
from paddlenlp_codegen_task.serving.transport import Framing, line, read, streamed, unless_gone

LINES = Framing("application/x-ndjson", line, ollama_error)
NAMES = {"max_tokens": "num_predict", "repetition_penalty": "repeat_penalty"}
TEMPLATE = "{{ .Prompt }}"
DEFAULT_MIDDLE = 128  # tokens of a middle, where num_predict does not say


class Options(BaseModel):
    """How to generate (api/types.go, DefaultOptions); None is the default.

    Those that are not here say how Ollama is to run a model (num_ctx, num_thread, ...), or are
    ignored by itself.
    """

    model_config = ConfigDict(strict=True, extra="ignore")

    num_predict: int | None = None
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_k: int | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    min_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    seed: int | None = None
    stop: Stop = None
    repeat_penalty: Annotated[Finite, Field(gt=0)] | None = None
    presence_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None


class GenerateRequest(BaseModel):
    """The body of a request; a stream is the default."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str
    prompt: str | None = None
    suffix: str | None = None
    stream: bool | None = None
    options: Options | None = None
    truncate: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    keep_alive: Any = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    images: list[str] | None = None
    format: Any = None
    think: Any = None


class ShowRequest(BaseModel):
    """Which model is asked about; older clients say `name`."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str | None = None
    name: str | None = None


def add_routes(app: FastAPI, completions: Completions) -> None:
    """Answer as Ollama does."""
    generator = completions.engine.generator
    started = _now()

    @app.post("/api/generate")
    async def generate(request: Request) -> Response:
        asked = await read(request, GenerateRequest, completions.settings)
        _refuse(asked)
        if not asked.prompt:  # asks to load the model, or to unload it
            unload = asked.keep_alive in (0, "0")
            reason = "unload" if unload else "load"
            return JSONResponse(_part(asked, "", done=True, done_reason=reason))
        parts = _parts(completions, asked)
        if asked.stream is not False:
            return await streamed(request, parts, LINES)
        return JSONResponse(await unless_gone(request, _joined(parts)))

    @app.get("/api/tags")
    async def tags() -> Response:
        model = {
            "name": generator.name,
            "model": generator.name,
            "modified_at": started,
            "size": 0,
            # Clients cut it to its first characters: it must be as long as one.
            "digest": hashlib.sha256(generator.name.encode()).hexdigest(),
            "details": _details(),
        }
        return JSONResponse({"models": [model]})

    @app.post("/api/show")
    async def show(request: Request) -> Response:
        await read(request, ShowRequest, completions.settings)
        return JSONResponse(
            {
                "modelfile": "",
                "parameters": "",
                "template": TEMPLATE,
                "details": _details(),
                "model_info": _model_info(generator),
                "capabilities": ["completion"],
                "modified_at": started,
            }
        )

    @app.get("/api/version")
    async def version() -> Response:
        return JSONResponse({"version": VERSION})

    @app.head("/")  # whether anybody is there, asked before anything else by Ollama's own client
    async def heartbeat() -> Response:
        return Response()


def completion_request(
    asked: GenerateRequest, prompt: str | list[int], most: int
) -> CompletionRequest:
    """A request of Ollama's as one of OpenAI's, for a prompt and at most so many tokens."""
    given = asked.options or Options()
    seed = given.seed if given.seed is not None and given.seed >= 0 else None
    return CompletionRequest(
        prompt=prompt,
        suffix=asked.suffix,
        max_tokens=most,
        temperature=0.8 if given.temperature is None else given.temperature,
        top_k=max(40 if given.top_k is None else given.top_k, 0),
        top_p=0.9 if given.top_p is None else given.top_p,
        min_p=given.min_p,
        seed=seed,
        stop=given.stop,
        repetition_penalty=given.repeat_penalty,
        presence_penalty=given.presence_penalty,
        frequency_penalty=given.frequency_penalty,
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        stream=True,
    )


def _refuse(asked: GenerateRequest) -> None:
    """Refuse what a model that only completes cannot do."""
    if asked.template and asked.template.replace(" ", "") == TEMPLATE.replace(" ", ""):
        asked.template = None
    for name in ("system", "template", "context", "images", "format", "think"):
        if getattr(asked, name):
            raise RequestError(f"{name}: this model only completes text, leave it out", name)


async def _job(completions: Completions, asked: GenerateRequest) -> Job:
    """Check a request, and find how much of the context is its prompt's.

    num_predict of 0 and below is "to the end" (-1, the default; -2, to the end of the context): as
    many tokens as fit. A prompt that does not fit loses its beginning, unless `truncate` is false;
    Ollama, too, leaves half of the context for what is to come.
    """
    assert asked.prompt is not None
    context = completions.engine.generator.config.n_positions
    prompt: str | list[int] = asked.prompt
    most = max((asked.options or Options()).num_predict or 0, 0)
    if asked.suffix:  # how much of two texts fits is found later
        most = most or DEFAULT_MIDDLE
    elif not most or (asked.truncate is not False and most < context):
        encode = partial(completions.tokenizer.encode, allow_special=False)
        few = len(asked.prompt) <= INLINE
        prompt = encode(asked.prompt) if few else await asyncio.to_thread(encode, asked.prompt)
        room = context - most if most else context - context // 2
        if asked.truncate is not False and len(prompt) > context - max(most, 1):
            prompt = prompt[-room:]
        most = most or max(context - len(prompt), 1)
    wanted = completion_request(asked, prompt, most)
    # Its prompt may be tokens by now, but came as a text.
    wanted.token_healing = completions.settings.token_healing and not asked.logprobs
    try:
        return await completions.job(wanted)
    except RequestError as error:
        raise renamed(error, NAMES) from None


async def _parts(
    completions: Completions, asked: GenerateRequest
) -> AsyncGenerator[dict[str, Any], None]:
    """An answer, part by part; the last has no text, but numbers."""
    begun = time.monotonic_ns()
    job = await _job(completions, asked)
    follows = LogProbs(completions.tokenizer)
    shown, reason, first = 0, "", 0
    async with aclosing(completions.engine.run(job.call, job.requests)) as pieces:
        async for piece in pieces:
            happened = piece.event
            if isinstance(happened, Text):
                first = first or time.monotonic_ns()
                reason = happened.finish_reason or reason
                shown += len(happened.text)
                follows.add(happened.log_probs)
                if happened.text:
                    more: dict[str, Any] = {}
                    if asked.logprobs:
                        more["logprobs"] = _log_probs(follows, shown)
                    yield _part(asked, happened.text, **more)
            elif isinstance(happened, Finished):
                now = time.monotonic_ns()
                yield _part(
                    asked,
                    "",
                    done=True,
                    done_reason=FINISH_REASONS[reason],
                    total_duration=now - begun,
                    load_duration=0,
                    prompt_eval_count=job.prompt_tokens,
                    prompt_eval_duration=first - begun,
                    eval_count=len(happened.rows[0].token_ids),
                    eval_duration=now - first,
                )


async def _joined(parts: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any]:
    """All of an answer at once: the last part, with the text of all."""
    text, log_probs = "", []
    whole: dict[str, Any] = {}
    async with aclosing(parts):
        async for part in parts:
            text += part["response"]
            log_probs += part.get("logprobs", [])
            whole = part
    whole["response"] = text
    if log_probs:
        whole["logprobs"] = log_probs
    return whole


def _part(asked: GenerateRequest, text: str, done: bool = False, **more: Any) -> dict[str, Any]:
    return {"model": asked.model, "created_at": _now(), "response": text, "done": done, **more}


def _log_probs(follows: LogProbs, end: int) -> list[dict[str, Any]]:
    """Those of the tokens whose text has been handed out."""
    written = follows.write(end)
    found = []
    for token, own, top in zip(
        written["tokens"], written["token_logprobs"], written["top_logprobs"], strict=True
    ):
        others = [{"token": one, "logprob": log_prob} for one, log_prob in top.items()]
        found.append({"token": token, "logprob": own, "top_logprobs": others})
    return found


def _details() -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "onnx",
        "family": "codegen",
        "families": ["codegen"],
        "parameter_size": "",
        "quantization_level": "",
    }


def _model_info(generator: CodeGenerator) -> dict[str, Any]:
    sizes = generator.config
    return {
        "general.architecture": "codegen",
        "codegen.context_length": sizes.n_positions,
        "codegen.embedding_length": sizes.n_embd,
        "codegen.block_count": sizes.n_layer,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
