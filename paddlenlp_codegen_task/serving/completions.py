"""From a request's body to completions: the one way in, whichever dialect it came in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from paddlenlp_codegen_task.decoding.events import Finished, Text
from paddlenlp_codegen_task.decoding.request import Request
from paddlenlp_codegen_task.requests import Call, Completion, PromptTooLong
from paddlenlp_codegen_task.serving import protocol
from paddlenlp_codegen_task.serving.async_engine import AsyncEngine, Overloaded
from paddlenlp_codegen_task.serving.logprobs import LogProbs
from paddlenlp_codegen_task.serving.protocol import CompletionRequest, RequestError
from paddlenlp_codegen_task.serving.settings import Settings

INLINE = 4096  # characters of prompts that are encoded at once; more would hold up all others
OPTION_NAMES = {
    "max_length": "max_tokens",
    "min_length": "min_tokens",
    "num_return_sequences": "n",
    "num_beams": "best_of",
}


@dataclass
class Job:
    """A request that has been checked, and can run.

    Attributes:
        asked: what came in.
        call: its options.
        requests: one of each prompt.
        texts: the prompts, as far as they are echoed.
    """

    asked: CompletionRequest
    call: Call
    requests: list[Request]
    texts: list[str]

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts."""
        return sum(len(request.prompt_ids) for request in self.requests)


class Completions:
    """Completes what clients ask for."""

    def __init__(self, engine: AsyncEngine, settings: Settings) -> None:
        """Run on `engine`, within what `settings` allow."""
        self.engine = engine
        self.settings = settings
        self.tokenizer = engine.generator.tokenizer

    async def job(self, asked: CompletionRequest) -> Job:
        """Check a request.

        Raises:
            RequestError: it cannot be served.
        """
        found = protocol.prompts(asked)
        limits = self.settings
        if len(found) > limits.max_prompts:
            raise RequestError(f"prompt: at most {limits.max_prompts} at a time", "prompt")
        if max(asked.n or 1, asked.best_of or 1) > limits.max_n:
            field = "n" if (asked.n or 1) > limits.max_n else "best_of"
            raise RequestError(f"{field} must be {limits.max_n} at most", field)
        rows = len(found) * max(asked.n or 1, asked.best_of or 1)
        if rows > self.engine.max_rows:
            raise RequestError(
                f"prompt: {rows} completions are asked for, and at most {self.engine.max_rows} "
                "can run and wait",
                "prompt",
            )
        if self.engine.rows + rows > self.engine.max_rows:  # told before it takes any time
            raise overloaded()
        if asked.suffix:
            raise RequestError("suffix: this model does not infill, leave it out", "suffix")
        if sum(map(len, found)) <= INLINE:
            return self._job(asked, found)
        return await asyncio.to_thread(self._job, asked, found)

    async def answer(self, job: Job) -> dict[str, Any]:
        """All of an answer."""
        answer = protocol.Answer(self.engine.generator.name)
        try:
            finished = await self.engine.finish(job.call, job.requests)
        except Overloaded:
            raise overloaded() from None
        choices: list[dict[str, Any]] = []
        generated = cached = 0
        for n, one in enumerate(finished):
            generated += sum(len(row.token_ids) for row in one.rows)
            cached += one.rows[0].cached_tokens
            completions = job.call.completions(one.request, one.rows)
            for completion in completions:
                choices.append(self._choice(job, n, len(choices), completion))
        return answer.body(choices, usage=protocol.usage(job.prompt_tokens, generated, cached))

    async def stream(self, job: Job) -> AsyncGenerator[dict[str, Any], None]:
        """An answer, part by part."""
        answer = protocol.Answer(self.engine.generator.name)
        count, asked = job.call.config.num_return_sequences, job.asked
        with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        more: dict[str, Any] = {"usage": None} if with_usage else {}
        shown = [0] * (count * len(job.requests))
        log_probs: list[LogProbs | None] = [None] * len(shown)
        if asked.echo:
            for n, text in enumerate(job.texts):
                for index in range(n * count, (n + 1) * count):
                    shown[index] = len(text)
                    yield answer.body([protocol.choice(index, text, None, None)], **more)
        if asked.logprobs is not None:
            log_probs = [LogProbs(self.tokenizer, offset) for offset in shown]
        generated = cached = 0
        async with aclosing(self.engine.run(job.call, job.requests)) as pieces:
            async for piece in pieces:
                event = piece.event
                if isinstance(event, Finished):
                    generated += sum(len(row.token_ids) for row in event.rows)
                    cached += event.rows[0].cached_tokens
                elif isinstance(event, Text) and event.index < count:
                    index = piece.prompt * count + event.index
                    shown[index] += len(event.text)
                    written, follows = None, log_probs[index]
                    if follows is not None:
                        follows.add(event.log_probs)
                        written = follows.write(shown[index])
                    if event.text or event.finish_reason:
                        part = protocol.choice(index, event.text, event.finish_reason, written)
                        yield answer.body([part], **more)
        if with_usage:
            total = protocol.usage(job.prompt_tokens, generated, cached)
            yield answer.body([], usage=total)

    def _job(self, asked: CompletionRequest, prompts: list[str | protocol.Ids]) -> Job:
        options = protocol.generation_options(asked, self.settings.truncations)
        options["prompt_overflow"] = self.settings.overflow
        if "truncation" not in asked.model_fields_set:
            options["truncation"] = self.settings.truncation
        try:
            call = self.engine.generator.call(streamed=bool(asked.stream), **options)
            requests = [self._request(asked, call, prompt, n) for n, prompt in enumerate(prompts)]
        except PromptTooLong as error:
            raise RequestError(
                f"This model's context has {error.context} tokens, and the prompt has "
                f"{error.tokens} with max_tokens {error.max_length}: at most {error.room} fit",
                "prompt",
                code="context_length_exceeded",
            ) from None
        except (TypeError, ValueError) as error:
            raise _request_error(error) from None
        texts = []
        if asked.echo:
            texts = [
                self.tokenizer.decode(prompt) if isinstance(prompt, list) else prompt
                for prompt in prompts
            ]
        return Job(asked, call, requests, texts)

    def _request(
        self, asked: CompletionRequest, call: Call, prompt: str | protocol.Ids, number: int
    ) -> Request:
        most = asked.truncate_prompt_tokens
        if isinstance(prompt, str) and most is None:
            return call.request(prompt, number)
        if isinstance(prompt, str):
            prompt = self.tokenizer.encode(prompt)
        return call.request_of_ids(prompt, number, most)

    def _choice(self, job: Job, prompt: int, index: int, completion: Completion) -> dict[str, Any]:
        text, offset = completion.text, 0
        if job.asked.echo:
            offset = len(job.texts[prompt])
            text = job.texts[prompt] + text
        written = None
        if completion.logprobs is not None:
            follows = LogProbs(self.tokenizer, offset)
            follows.add(completion.logprobs)
            written = follows.write(len(text))
        return protocol.choice(index, text, completion.finish_reason, written)


def overloaded() -> RequestError:
    """The answer to a request that would have to wait for too long."""
    return RequestError(
        "the server has as many requests as it takes: try again later",
        status=429,
        kind="rate_limit_error",
        code="rate_limit_exceeded",
    )


def _request_error(error: Exception) -> RequestError:
    """What is wrong with an option, by the field's name; the option's is the first word."""
    message = str(error)
    name = message.split(" ", 1)[0].rstrip(":")
    field = OPTION_NAMES.get(name, name)
    if field not in CompletionRequest.model_fields:
        return RequestError(message, "prompt" if name == "prompt" else None)
    return RequestError(field + message[len(name) :], field)
