"""PaddleNLP's example server, with its model eager and its way to answer: one prompt at a time.

As its codegen_server.py does: one route, of which `prompt` and `stream` are read; `generate` runs
inside the coroutine, so that the event loop answers nobody else meanwhile; the text comes in one
event, once it is whole, and the end is announced as `data: data: [DONE]`. What differs: the CPU in
place of a GPU in half precision, and MAX_LENGTH new tokens, 16 there, never less, so that all
servers do the same work.
"""

from __future__ import annotations

import json
import os
import random
import string
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import http_worker
import paddle
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse
from paddlenlp.transformers import CodeGenForCausalLM
from pydantic import BaseModel

from paddlenlp_codegen_task.model.tokenizer import Tokenizer

MAX_LENGTH = int(os.environ.get("MAX_LENGTH", "32"))


class Input(BaseModel):
    prompt: str
    stream: bool = False


def load(folder: Path, precision: str, threads: int) -> FastAPI:
    paddle.set_device("cpu")
    model = CodeGenForCausalLM.from_pretrained(str(folder))
    model.eval()
    # PaddleNLP's own tokenizer gives more tokens for blanks: then it would read longer prompts.
    tokenizer = Tokenizer.from_folder(folder)
    app = FastAPI()

    @app.post("/v1/engines/codegen/completions")
    async def gen(item: Input) -> Response:
        tokens, _ = model.generate(
            paddle.to_tensor([tokenizer.encode(item.prompt)]),
            max_length=MAX_LENGTH,
            min_length=MAX_LENGTH,
            decode_strategy="greedy_search",
            repetition_penalty=1.0,
            temperature=0.5,
            top_k=10,
        )
        content = json.dumps(answer(tokenizer.decode(tokens.numpy()[0].tolist())))
        if item.stream:
            return StreamingResponse(events(content), media_type="text/event-stream")
        return Response(content, media_type="application/json")

    return app


def answer(text: str) -> dict[str, Any]:
    letters = string.ascii_letters + string.digits
    return {
        "id": "cmpl-" + "".join(random.choice(letters) for _ in range(29)),
        "model": "codegen",
        "object": "text_completion",
        "created": int(time.time()),
        "choices": [{"text": text, "index": 0, "finish_reason": "stop", "logprobs": None}],
        "usage": {"completion_tokens": None, "prompt_tokens": None, "total_tokens": None},
    }


def events(content: str) -> Iterator[str]:
    yield f"data: {content}\r\n\r\n"
    yield "data: data: [DONE]\r\n\r\n"


if __name__ == "__main__":
    http_worker.main(load)
