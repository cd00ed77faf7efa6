"""What clients speak that is not OpenAI's own: each a translation of one way in.

FauxPilot's and Copilot's are here; text-generation-inference's is in tgi.py, Ollama's in ollama.py.
Tabby's `vllm/completion` (crates/http-api-bindings/src/completion/openai.rs) needs no route: it
posts {model, prompt, suffix: null, max_tokens, temperature, stream: true, presence_penalty} to
`{api_endpoint}/completions`, which is `/v1/completions` here, reads `choices[0].text` of every
event, and stops at the first finish_reason.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from paddlenlp_codegen_task.serving import ollama, tgi
from paddlenlp_codegen_task.serving.completions import Completions
from paddlenlp_codegen_task.serving.protocol import CompletionRequest, Finite
from paddlenlp_codegen_task.serving.transport import OPENAI, read, streamed, unless_gone


class EngineRequest(CompletionRequest):
    """The body of a request to an engine; with FauxPilot's temperature (models.py)."""

    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = 0.6


def add_routes(app: FastAPI, completions: Completions) -> None:
    """Answer to all of them."""

    # FauxPilot (copilot_proxy/app.py) has two engines, `codegen` and `copilot-codex`; editors are
    # set to any. What they send:
    # - Venthe/vscode-fauxpilot (src/AccessBackend.ts), by npm's openai or axios: {model:
    #   "fastertransformer", prompt, max_tokens, temperature, stop: ["\n"] or []}, no `stream`; it
    #   shows choices[0].text.
    # - Copilot: {prompt, suffix, max_tokens, temperature, top_p, n, stop, stream: true, extra,
    #   nwo, logprobs}. It cannot be told to send no suffix, so that is never an error here: a model
    #   that does not infill completes what stands before it.
    @app.post("/v1/engines/{engine}/completions")
    async def complete(request: Request) -> Response:
        asked = await read(request, EngineRequest, completions.settings)
        if not completions.infills:
            asked.suffix = None
        job = await completions.job(asked)
        if asked.stream:
            return await streamed(request, completions.stream(job), OPENAI)
        return JSONResponse(await unless_gone(request, completions.answer(job)))

    # Copilot asks for this with its GitHub token before anything else (copilot.vim, when told to
    # use another server); FauxPilot's own answer. The token comes back as the Bearer key of each
    # request, so that a server with keys lets no Copilot in.
    @app.get("/copilot_internal/v2/token")
    async def token() -> Response:
        return JSONResponse({"token": "1", "expires_at": 2600000000, "refresh_in": 900})

    tgi.add_routes(app, completions)
    ollama.add_routes(app, completions)
