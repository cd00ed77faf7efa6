"""The dialect of Hugging Face's text-generation-inference (TGI).

Fields, defaults and answers are those of its router (router/src/lib.rs, validation.rs, server.rs)
as its clients use them: huggingface_hub's InferenceClient.text_generation, which posts to the URL
it is given, `/` or `/generate`; llm-ls, which posts to `/generate` (backend `tgi`) or
`/models/{model}` (backend `huggingface`) and reads `generated_text` or `error`.

It differs in one thing: a stop sequence is not part of the text, as nowhere here.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from paddlenlp_codegen_task.decoding.events import Finished, Text
from paddlenlp_codegen_task.serving.about import VERSION
from paddlenlp_codegen_task.serving.completions import Completions, Job, healed
from paddlenlp_codegen_task.serving.logprobs import TokenBytes
from paddlenlp_codegen_task.serving.protocol import (
    MINUS_INFINITY,
    CompletionRequest,
    Finite,
    RequestError,
)
from paddlenlp_codegen_task.serving.refusals import renamed, tgi_error
from paddlenlp_codegen_task.serving.transport import Framing, event, read, streamed, unless_gone

# No "[DONE]" follows: the event that has `generated_text` is the last.
EVENTS = Framing("text/event-stream", event, tgi_error)
NAMES = {"max_tokens": "max_new_tokens", "truncate_prompt_tokens": "truncate"}
REASONS = {"eos": "eos_token", "stop": "stop_sequence", "length": "length"}

Token = tuple[dict[str, Any], list[dict[str, Any]]]  # itself, and the likeliest in its place


class GenerateParameters(BaseModel):
    """How to generate; None is TGI's default everywhere."""

    model_config = ConfigDict(strict=True, extra="ignore")

    best_of: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[Finite, Field(gt=0, le=2)] | None = None
    repetition_penalty: Annotated[Finite, Field(gt=0)] | None = None
    frequency_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    do_sample: bool | None = None
    # TGI itself generates as many as fit; 100 is what InferenceClient's users are told.
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    return_full_text: bool | None = None
    stop: list[str] | None = None
    truncate: Annotated[int, Field(ge=1)] | None = None
    details: bool | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    top_n_tokens: Annotated[int, Field(ge=0, le=20)] | None = None
    # What is not done is refused: a text without it would not be what was asked for.
    typical_p: Finite | None = None
    watermark: bool | None = None
    decoder_input_details: bool | None = None
    grammar: Any = None
    adapter_id: str | None = None


class GenerateRequest(BaseModel):
    """The body of a request; `stream` counts at `/` and `/models/{model}` only."""

    model_config = ConfigDict(strict=True, extra="ignore")

    inputs: str
    parameters: GenerateParameters | None = None
    stream: bool | None = None


def add_routes(app: FastAPI, completions: Completions) -> None:
    """Answer as TGI does."""

    async def asked_for(request: Request) -> GenerateRequest:
        return await read(request, GenerateRequest, completions.settings)

    @app.post("/generate")
    async def generate(request: Request) -> Response:
        asked = await asked_for(request)
        return JSONResponse(await unless_gone(request, _answer(completions, asked)))

    @app.post("/generate_stream")
    async def generate_stream(request: Request) -> Response:
        return await streamed(request, _stream(completions, await asked_for(request)), EVENTS)

    # TGI's `compat_generate`: the hosted inference API's form of both. The text has the prompt
    # before it unless `return_full_text` is false, which llm-ls sends, and the answer is a list.
    @app.post("/")
    @app.post("/models/{model:path}")
    async def compat_generate(request: Request) -> Response:
        asked = await asked_for(request)
        parameters = asked.parameters = asked.parameters or GenerateParameters()
        if parameters.return_full_text is None:
            parameters.return_full_text = True
        if asked.stream:
            return await streamed(request, _stream(completions, asked), EVENTS)
        return JSONResponse([await unless_gone(request, _answer(completions, asked))])

    @app.get("/info")  # InferenceClient.get_endpoint_info
    async def info() -> Response:
        generator, settings = completions.engine.generator, completions.settings
        context = generator.config.n_positions
        return JSONResponse(
            {
                "model_id": generator.name,
                "model_sha": None,
                "model_pipeline_tag": "text-generation",
                "max_concurrent_requests": completions.engine.max_rows,
                "max_best_of": settings.max_n,
                "max_input_tokens": context - 1,
                "max_total_tokens": context,
                "max_client_batch_size": 1,
                "router": "paddlenlp-codegen",
                "version": VERSION,
            }
        )


def completion_request(asked: GenerateRequest, stream: bool) -> CompletionRequest:
    """A request of TGI's as one of OpenAI's.

    Raises:
        RequestError: it asks for what is not done here.
    """
    given = asked.parameters or GenerateParameters()
    for name in ("typical_p", "watermark", "decoder_input_details", "grammar", "adapter_id"):
        if getattr(given, name):
            raise RequestError(f"{name}: this server does not have it, leave it out", name)
    if not asked.inputs:
        raise RequestError("inputs must not be empty", "inputs")
    # Its `validate`: any of them asks for sampling.
    sampling = given.do_sample or any((given.temperature, given.top_k, given.top_p))
    best_of = given.best_of or 1
    if best_of > 1 and not sampling:
        raise RequestError("best_of above 1 needs do_sample true, or a temperature", "best_of")
    if best_of > 1 and stream:
        raise RequestError("best_of does not go with a stream: its texts are ranked", "best_of")
    return CompletionRequest(
        prompt=asked.inputs,
        max_tokens=given.max_new_tokens or 100,
        temperature=(given.temperature or 1.0) if sampling else 0.0,
        top_k=given.top_k,
        top_p=given.top_p,
        best_of=best_of if best_of > 1 else None,
        repetition_penalty=given.repetition_penalty,
        frequency_penalty=given.frequency_penalty,
        stop=given.stop,
        seed=given.seed,
        truncate_prompt_tokens=given.truncate,
        logprobs=(given.top_n_tokens or 0) if stream or given.details else None,
        stream=stream,
    )


async def _job(completions: Completions, asked: GenerateRequest, stream: bool) -> Job:
    try:
        wanted = completion_request(asked, stream)
        # Whether tokens are told of or not: each has what is left of it after the prompt.
        wanted.token_healing = completions.settings.token_healing
        return await completions.job(wanted)
    except RequestError as error:
        raise renamed(error, NAMES) from None


async def _answer(completions: Completions, asked: GenerateRequest) -> dict[str, Any]:
    """All of an answer."""
    job = await _job(completions, asked, stream=False)
    [finished] = await completions.engine.finish(job.call, job.requests)
    [completion] = job.call.completions(finished.request, finished.rows)
    answer: dict[str, Any] = {"generated_text": _before(asked) + completion.text}
    if completion.logprobs is not None:
        follows = Tokens(completions.tokenizer, job.asked.logprobs or 0, healed(finished.request))
        follows.add(completion.logprobs)
        tokens = follows.settle(completion.text) + follows.end()
        answer["details"] = {
            "finish_reason": REASONS[completion.finish_reason],
            "generated_tokens": len(completion.token_ids),
            "seed": job.asked.seed,
            "prefill": [],
            "tokens": [token for token, _ in tokens],
        }
        if job.asked.logprobs:
            answer["details"]["top_tokens"] = [top for _, top in tokens]
    return answer


async def _stream(
    completions: Completions, asked: GenerateRequest
) -> AsyncGenerator[dict[str, Any], None]:
    """An answer, token by token; the last has all of the text."""
    job = await _job(completions, asked, stream=True)
    follows = Tokens(completions.tokenizer, job.asked.logprobs or 0, healed(job.requests[0]))
    text, reason = "", "length"
    last: dict[str, Any] | None = None
    index = 0
    async with aclosing(completions.engine.run(job.call, job.requests)) as pieces:
        async for piece in pieces:
            happened = piece.event
            if isinstance(happened, Text):
                text += happened.text
                follows.add(happened.log_probs)
                settled = follows.settle(happened.text)
                if happened.finish_reason:
                    reason = happened.finish_reason
                    settled += follows.end()
                for token, top in settled:
                    if last is not None:
                        yield last
                    index += 1
                    last = {"index": index, "token": token}
                    if job.asked.logprobs:
                        last["top_tokens"] = top
                if last is not None and not happened.finish_reason:
                    yield last
                    last = None
            elif isinstance(happened, Finished):
                [row] = happened.rows
                if last is None:  # the text was all there when the model ended it
                    end = row.end_token_id
                    token = {"id": end, "text": "", "logprob": None, "special": True}
                    last = {"index": index + 1, "token": token}
                last["generated_text"] = _before(asked) + text
                last["details"] = None
                if asked.parameters is not None and asked.parameters.details:
                    last["details"] = {
                        "finish_reason": REASONS[reason],
                        "generated_tokens": len(row.token_ids),
                        "seed": job.asked.seed,
                        "input_length": job.prompt_tokens,
                    }
                yield last


def _before(asked: GenerateRequest) -> str:
    full = asked.parameters is not None and asked.parameters.return_full_text
    return asked.inputs if full else ""


class Tokens:
    """Follows the tokens of one text, and hands each out with its part of the text.

    The parts make up the text, whatever cuts it: a token whose text is cut has what is left.
    """

    def __init__(self, tokenizer: TokenBytes, top: int, healed: int = 0) -> None:
        """Begin with a text's first token.

        Args:
            tokenizer: says what tokens stand for.
            top: of how many of the likeliest in each one's place is told.
            healed: characters of the first tokens that are of the prompt, and not of the text.
        """
        self._top = top
        self._healed = healed
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""  # that is settled, and of no token yet
        self._waiting: deque[tuple[dict[int, float], int]] = deque()

    def add(self, tokens: Iterable[dict[int, float]]) -> None:
        """Append tokens: for each the log-probabilities, its own first."""
        for one in tokens:
            length = len(self._decoder.decode(self._token_bytes(next(iter(one)))))
            of_prompt = min(self._healed, length)
            self._healed -= of_prompt
            self._waiting.append((one, length - of_prompt))

    def settle(self, text: str) -> list[Token]:
        """Append text that nothing takes back; the tokens that are now all there."""
        self._text += text
        done = []
        while self._waiting and self._waiting[0][1] <= len(self._text):
            log_probs, length = self._waiting.popleft()
            done.append(self._written(log_probs, length))
        return done

    def end(self) -> list[Token]:
        """The tokens whose text has been cut: the first has what is left of it."""
        left = [(log_probs, len(self._text)) for log_probs, _ in self._waiting]
        self._waiting.clear()
        return [self._written(log_probs, length) for log_probs, length in left]

    def _written(self, log_probs: dict[int, float], length: int) -> Token:
        text, self._text = self._text[:length], self._text[length:]
        own = self._one(next(iter(log_probs)), log_probs)
        likeliest = sorted(log_probs, key=log_probs.__getitem__, reverse=True)[: self._top]
        return {**own, "text": text}, [self._one(token_id, log_probs) for token_id in likeliest]

    def _one(self, token_id: int, log_probs: dict[int, float]) -> dict[str, Any]:
        data = self._token_bytes(token_id)
        return {
            "id": token_id,
            "text": data.decode(errors="replace"),
            "logprob": max(log_probs[token_id], MINUS_INFINITY),
            "special": not data,
        }
