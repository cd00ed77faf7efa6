"""From a request's body to completions: the one way in, whichever dialect it came in."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from paddlenlp_codegen_task.decoding.events import Finished, Text
from paddlenlp_codegen_task.decoding.request import Request
from paddlenlp_codegen_task.model.infilling import Infilling
from paddlenlp_codegen_task.requests import Call, Infill, PromptTooLong
from paddlenlp_codegen_task.serving import protocol
from paddlenlp_codegen_task.serving.async_engine import AsyncEngine, Overloaded
from paddlenlp_codegen_task.serving.logprobs import LogProbs, TokenBytes, joined
from paddlenlp_codegen_task.serving.protocol import CompletionRequest, RequestError
from paddlenlp_codegen_task.serving.settings import Settings

INLINE = 4096  # characters of prompts that are encoded at once; more would hold up all others
OPTION_NAMES = {
    "max_length": "max_tokens",
    "min_length": "min_tokens",
    "num_return_sequences": "n",
    "num_beams": "best_of",
    "prompt_logprobs": "logprobs",
}
_OPTION = re.compile(rf"\b({'|'.join(OPTION_NAMES)})\b")


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
        if settings.token_healing:
            _ = self.tokenizer.spelling  # made now: the first request would hold up all others

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
            raise Overloaded
        if asked.suffix:
            self._check_suffix(asked, found)
        if sum(map(len, found)) <= INLINE:
            return self._job(asked, found)
        return await asyncio.to_thread(self._job, asked, found)

    @property
    def infills(self) -> bool:
        """Whether the model completes the middle of a text."""
        return Infilling.of(self.tokenizer) is not None

    def _check_suffix(self, asked: CompletionRequest, found: Sequence[str | protocol.Ids]) -> None:
        if not self.infills:
            raise RequestError("suffix: this model does not infill, leave it out", "suffix")
        if not all(isinstance(prompt, str) for prompt in found):
            raise RequestError("suffix: the prompt must be text, not tokens", "suffix")
        if asked.truncate_prompt_tokens is not None:
            raise RequestError("truncate_prompt_tokens does not go with suffix", "suffix")

    async def answer(self, job: Job) -> dict[str, Any]:
        """All of an answer."""
        answer = protocol.Answer(self.engine.generator.name)
        finished = await self.engine.finish(job.call, job.requests)
        choices: list[dict[str, Any]] = []
        generated = cached = 0
        for n, one in enumerate(finished):
            generated += sum(len(row.token_ids) for row in one.rows)
            cached += one.rows[0].cached_tokens
            for completion in job.call.completions(one.request, one.rows):
                written = _Choice(job, n, len(choices), self.tokenizer)
                choices.append(
                    written.part(
                        completion.text, completion.logprobs or (), completion.finish_reason
                    )
                )
        return answer.body(choices, usage=protocol.usage(job.prompt_tokens, generated, cached))

    async def stream(self, job: Job) -> AsyncGenerator[dict[str, Any], None]:
        """An answer, part by part."""
        answer = protocol.Answer(self.engine.generator.name)
        count, asked = job.call.config.num_return_sequences, job.asked
        with_usage = asked.stream_options is not None and asked.stream_options.include_usage
        more: dict[str, Any] = {"usage": None} if with_usage else {}
        choices = [
            _Choice(job, index // count, index, self.tokenizer)
            for index in range(count * len(job.requests))
        ]
        generated = cached = 0
        async with aclosing(self.engine.run(job.call, job.requests)) as pieces:
            async for piece in pieces:
                event = piece.event
                if isinstance(event, Finished):
                    generated += sum(len(row.token_ids) for row in event.rows)
                    cached += event.rows[0].cached_tokens
                elif isinstance(event, Text) and event.index < count:
                    choice = choices[piece.prompt * count + event.index]
                    part = choice.part(event.text, event.log_probs, event.finish_reason)
                    if part["text"] or event.finish_reason:
                        yield answer.body([part], **more)
        if with_usage:
            total = protocol.usage(job.prompt_tokens, generated, cached)
            yield answer.body([], usage=total)

    def _job(self, asked: CompletionRequest, prompts: list[str | protocol.Ids]) -> Job:
        if asked.token_healing is None:
            # Who gives tokens, or looks at them, means those that there are.
            as_it_is = asked.logprobs is not None or not isinstance(prompts[0], str)
            asked.token_healing = self.settings.token_healing and not as_it_is
        options = protocol.generation_options(asked, self.settings.truncations)
        options["prompt_overflow"] = self.settings.overflow
        if "truncation" not in asked.model_fields_set:
            options["truncation"] = None if asked.suffix else self.settings.truncation
        options["allow_special_tokens"] = False  # nobody has read what an editor sends
        streamed, infill = bool(asked.stream), bool(asked.suffix)
        try:
            call = self.engine.generator.call(streamed=streamed, infill=infill, **options)
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
        texts = self._echoed(asked, prompts, requests) if asked.echo else []
        return Job(asked, call, requests, texts)

    def _echoed(
        self,
        asked: CompletionRequest,
        prompts: list[str | protocol.Ids],
        requests: list[Request],
    ) -> list[str]:
        """Texts of prompts, without what was dropped of them."""
        whole = asked.truncate_prompt_tokens is None and self.settings.overflow == "error"
        return [
            prompt if isinstance(prompt, str) and (whole or asked.suffix) else self._text(one)
            for prompt, one in zip(prompts, requests, strict=True)
        ]

    def _text(self, request: Request) -> str:
        """The prompt of a request, with what was taken back of it."""
        read = b"".join(map(self.tokenizer.token_bytes, request.prompt_ids))
        return (read + (request.healing.text if request.healing else b"")).decode(errors="replace")

    def _request(
        self, asked: CompletionRequest, call: Call, prompt: str | protocol.Ids, number: int
    ) -> Request:
        most = asked.truncate_prompt_tokens
        if asked.suffix:
            return call.request(Infill(str(prompt), asked.suffix), number)
        if prompt == "":  # a new document, which the model has seen begin so
            prompt = [self.tokenizer.eos_token_id]
        if isinstance(prompt, str) and most is None:
            return call.request(prompt, number)
        if isinstance(prompt, str):
            prompt = self.tokenizer.encode(prompt, allow_special=False)
        return call.request_of_ids(prompt, number, most)


class _Choice:
    """One choice of an answer, as far as it has been written."""

    def __init__(self, job: Job, prompt: int, index: int, tokenizer: TokenBytes) -> None:
        """Begin the `index`-th, which completes the `prompt`-th prompt."""
        self._index = index
        self._request = job.requests[prompt]
        self._tokenizer = tokenizer
        self._echo: str | None = job.texts[prompt] if job.asked.echo else None
        self._shown = len(self._echo or "")
        self._log_probs: LogProbs | None = None
        if job.asked.logprobs is not None:
            # The first tokens may be of the prompt's end, which is before the answer's text.
            self._log_probs = LogProbs(tokenizer, self._shown - healed(self._request))

    def part(
        self, text: str, log_probs: Iterable[dict[int, float]], finish_reason: str | None
    ) -> dict[str, Any]:
        """What is new: text, and the tokens that have come; first of all the echo."""
        self._shown += len(text)
        written = None
        if self._log_probs is not None:
            self._log_probs.add(log_probs)
            written = self._log_probs.write(self._shown)
        if self._echo is not None:
            text, self._echo = self._echo + text, None
            if written is not None:
                written = joined(self._of_prompt(), written)
        return protocol.choice(self._index, text, finish_reason, written)

    def _of_prompt(self) -> dict[str, Any]:
        found = LogProbs(self._tokenizer)
        first, *others = self._request.prompt_ids
        found.add_token(first, None)
        for token_id, one in zip(others, self._request.prompt_log_probs or (), strict=True):
            found.add_token(token_id, one)
        return found.write()


def healed(request: Request) -> int:
    """How many characters of the first new tokens are of the prompt, taken back and spelled again.

    What such a token has of a character that began before it counts as one.
    """
    return len(request.healing.text.decode(errors="replace")) if request.healing else 0


def _request_error(error: Exception) -> RequestError:
    """What is wrong with an option, by the field's name; the option's is the first word."""
    message = _OPTION.sub(lambda found: OPTION_NAMES[found[0]], str(error))
    name = message.split(" ", 1)[0].rstrip(":")
    return RequestError(message, name if name in CompletionRequest.model_fields else None)
