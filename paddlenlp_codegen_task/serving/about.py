"""What clients ask of the model that runs: its name, its room, its tokens."""

from __future__ import annotations

import asyncio
import time
from importlib.metadata import version as version_of
from typing import Annotated, Any

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field

from paddlenlp_codegen_task.serving.completions import Completions
from paddlenlp_codegen_task.serving.protocol import RequestError
from paddlenlp_codegen_task.serving.transport import read

VERSION = version_of("paddlenlp_codegen_task")


class TokenizeRequest(BaseModel):
    """A text, as vLLM's /tokenize takes it; its other fields change nothing here."""

    model_config = ConfigDict(strict=True, extra="ignore")

    prompt: str
    return_token_strs: bool | None = False


class DetokenizeRequest(BaseModel):
    """Tokens, as vLLM's /detokenize takes them."""

    model_config = ConfigDict(strict=True, extra="ignore")

    tokens: list[Annotated[int, Field(ge=0)]]


def add_routes(app: FastAPI, completions: Completions) -> None:
    """Answer what clients ask before they complete anything."""
    generator, settings = completions.engine.generator, completions.settings
    tokenizer, room = generator.tokenizer, generator.config.n_positions
    model = {
        "id": generator.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "paddlenlp-codegen",
        "root": generator.name,
        "parent": None,
        "max_model_len": room,
    }

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        if name != generator.name:
            raise RequestError(
                f"there is no such model here, only {generator.name}",
                "model",
                status=404,
                code="model_not_found",
            )
        return model

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": VERSION}

    @app.post("/tokenize")
    async def tokenize(request: Request) -> dict[str, Any]:
        asked = await read(request, TokenizeRequest, settings)
        tokens = await asyncio.to_thread(tokenizer.encode, asked.prompt, False)
        texts = None
        if asked.return_token_strs:
            texts = [tokenizer.decode([token]) for token in tokens]
        return {"count": len(tokens), "max_model_len": room, "tokens": tokens, "token_strs": texts}

    @app.post("/detokenize")
    async def detokenize(request: Request) -> dict[str, str]:
        asked = await read(request, DetokenizeRequest, settings)
        size = generator.config.vocab_size
        if any(token >= size for token in asked.tokens):
            raise RequestError(f"tokens must be from 0 to {size - 1}", "tokens")
        return {"prompt": await asyncio.to_thread(tokenizer.decode, asked.tokens)}
