"""OpenAI's completions API: what comes in, and what goes out.

Fields, defaults and bounds are those of https://platform.openai.com/docs/api-reference/completions;
what goes beyond it is named as in vLLM. Fields that are not known are ignored, as there.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.options import GenerationOptions

Finite = Annotated[float, Field(allow_inf_nan=False)]
Ids = list[int]
_ID = re.compile("[0-9]{1,9}")
WRONG = "wrong"  # errors of pydantic's with a message of ours
MINUS_INFINITY = -9999.0  # JSON knows no infinity; vLLM's choice

# What ends a text by itself: "eos" and "stop" are one for OpenAI.
FINISH_REASONS: dict[str, Literal["stop", "length"]] = {
    "stop": "stop",
    "eos": "stop",
    "length": "length",
}


def _wrong(field: str, expected: str) -> PydanticCustomError:
    return PydanticCustomError(WRONG, f"{field} must be {expected}")


def _checked_prompt(value: Any) -> Any:
    """A prompt of any of its four kinds; pydantic would complain four times of one that is none."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise _wrong("prompt", "a string, token ids, or a list of strings or of lists of token ids")
    if all(isinstance(one, str) for one in value) or _are_ids(value):
        return value
    if all(isinstance(one, list) and _are_ids(one) for one in value):
        return value
    raise _wrong("prompt", "strings, token ids or lists of token ids, all of one kind")


def _are_ids(value: list[Any]) -> bool:
    return all(type(one) is int for one in value)


def _checked_stop(value: Any) -> Any:
    many = isinstance(value, list) and all(isinstance(one, str) for one in value)
    if value is None or isinstance(value, str) or many:
        return value
    raise _wrong("stop", "a string or a list of strings")


Stop = Annotated[Any, BeforeValidator(_checked_stop)]


def _checked_bias(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, dict):
        ids = all(isinstance(one, str) and _ID.fullmatch(one) for one in value)
        if ids and all(type(one) in (int, float) and abs(one) <= 100 for one in value.values()):
            return value
    raise _wrong("logit_bias", "an object of token ids with numbers from -100 to 100")


def _checked_ids(value: Any) -> Any:
    if value is None or (isinstance(value, list) and _are_ids(value)):
        return value
    raise _wrong("stop_token_ids", "a list of token ids")


class StreamOptions(BaseModel):
    """How a stream is to look."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool = False


class CompletionRequest(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(strict=True, extra="ignore")

    model: str | None = None
    prompt: Annotated[Any, BeforeValidator(_checked_prompt)] = None
    suffix: str | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = 16
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = 1.0
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = 1.0
    n: Annotated[int, Field(ge=1)] | None = 1
    best_of: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = False
    stop: Stop = None
    presence_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = 0.0
    frequency_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = 0.0
    logit_bias: Annotated[Any, BeforeValidator(_checked_bias)] = None
    seed: int | None = None
    user: str | None = None

    top_k: Annotated[int, Field(ge=-1)] | None = 0
    min_p: Annotated[Finite, Field(ge=0, le=1)] | None = 0.0
    repetition_penalty: Annotated[Finite, Field(gt=0)] | None = 1.0
    stop_token_ids: Annotated[Any, BeforeValidator(_checked_ids)] = None
    ignore_eos: bool | None = False
    min_tokens: Annotated[int, Field(ge=0)] | None = 0
    use_beam_search: bool | None = False
    length_penalty: Finite | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=1)] | None = None

    token_healing: bool | None = None
    truncation: str | None = None


class RequestError(ValueError):
    """A request that cannot be served, in OpenAI's terms.

    Attributes:
        status: of the answer.
        kind: the error's type.
        param: the field that is wrong.
        code: a word for it.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
    ) -> None:
        """Say what is wrong, and what would be right."""
        super().__init__(message)
        self.status, self.kind, self.param, self.code = status, kind, param, code

    def body(self) -> dict[str, Any]:
        """The answer."""
        error = {
            "message": str(self),
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}


def refused(error: ValidationError) -> RequestError:
    """What is wrong with a body, first of all; nothing of the body is in it."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where, message = first["loc"], str(first["msg"])
    if not where:
        what = f"the body must be a JSON object: {message}"
    elif first["type"] == WRONG:
        what = message
    else:
        # Names within a field that a client may make up, logit_bias's, are checked above.
        what = f"{'.'.join(str(one) for one in where)}: {message}"
    return RequestError(checks.line(what, 300), str(where[0]) if where else None)


def prompts(request: CompletionRequest) -> list[str | Ids]:
    """The prompts of a request, texts or token ids."""
    found: str | Ids | list[str] | list[Ids] | None = request.prompt
    if found is None and "prompt" not in request.model_fields_set:
        raise RequestError("prompt is required: a string, or a list of them", "prompt")
    if found is None:  # OpenAI's default: a new document
        found = ""
    if isinstance(found, str):
        return [found]
    ids = [one for one in found if isinstance(one, int)]
    if ids:
        return [ids]
    return [one for one in found if not isinstance(one, int)]


def generation_options(request: CompletionRequest, truncations: Sequence[str]) -> GenerationOptions:
    """What a request asks for, as options of a generator.

    Args:
        request: what came in.
        truncations: the presets that may be named: nobody else's regular expression is compiled.

    Raises:
        RequestError: fields that do not go together.
    """
    if request.truncation is not None and request.truncation not in truncations:
        names = ", ".join(truncations)
        raise RequestError(f"truncation must be null or one of {names}", "truncation")
    count, best_of = request.n or 1, request.best_of
    if best_of is not None and best_of < count:
        raise RequestError(f"best_of must be n ({count}) at least, got {best_of}", "best_of")
    if request.stream and (best_of or 1) > count:
        raise RequestError("best_of does not go with stream: its texts are ranked", "best_of")
    most = 16 if request.max_tokens is None else request.max_tokens
    prompt_logprobs = request.logprobs if request.echo else None
    options: GenerationOptions = {
        "max_length": most,
        "min_length": request.min_tokens or 0,
        "num_return_sequences": count,
        "repetition_penalty": request.repetition_penalty or 1.0,
        "presence_penalty": request.presence_penalty or 0.0,
        "frequency_penalty": request.frequency_penalty or 0.0,
        "logit_bias": {int(token): bias for token, bias in (request.logit_bias or {}).items()},
        "logprobs": request.logprobs,
        "prompt_logprobs": 0 if not most and prompt_logprobs is None else prompt_logprobs,
        "seed": None if request.seed is None else request.seed % 2**64,
        "truncation": request.truncation,
        "stop": request.stop,
        "token_healing": bool(most and request.token_healing),
        "stop_token_ids": request.stop_token_ids,
        "ignore_eos": bool(request.ignore_eos),
    }
    temperature = 1.0 if request.temperature is None else request.temperature
    if not most or (temperature == 0 and not request.use_beam_search):
        options["decode_strategy"] = "greedy_search"
        del options["seed"]
    elif request.use_beam_search:
        options["decode_strategy"] = "beam_search"
        options["num_beams"] = max(best_of or count, count)
        options["length_penalty"] = (
            1.0 if request.length_penalty is None else request.length_penalty
        )
        del options["seed"]
    else:
        options["decode_strategy"] = "sampling"
        options["temperature"] = temperature
        options["top_p"] = 1.0 if request.top_p is None else request.top_p
        options["top_k"] = max(request.top_k or 0, 0)
        options["min_p"] = request.min_p or 0.0
        if best_of is not None and best_of > count:
            options["best_of"] = best_of
    return options


def usage(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    """Tokens of a request."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


class Answer:
    """What is the same in all parts of one answer."""

    def __init__(self, model: str) -> None:
        """Begin an answer of this model."""
        self.id = f"cmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.model = model

    def body(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """The answer, or a part of it."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
            **more,
        }


def choice(
    index: int, text: str, finish_reason: str | None, logprobs: dict[str, Any] | None
) -> dict[str, Any]:
    """One completion, or a part of it."""
    reason = None if finish_reason is None else FINISH_REASONS[finish_reason]
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
