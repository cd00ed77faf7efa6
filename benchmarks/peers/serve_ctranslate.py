"""CTranslate2 behind a small FastAPI app that batches: all that comes within 10 ms runs together.

Tokens are streamed as generate_batch's callback tells of them. While a batch runs, others wait for
the next one, which is as large as what waits, and MOST at most.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ctranslate2
import http_worker
import tokenizers
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

WINDOW = 0.010  # seconds
MOST = 32


class Input(BaseModel):
    prompt: str
    max_tokens: int = 16
    ignore_eos: bool = False


@dataclass
class Job:
    asked: Input
    tokens: list[str]
    generated: list[int] = field(default_factory=list)
    events: asyncio.Queue[int | None] = field(default_factory=asyncio.Queue)


class Batcher:
    def __init__(self, folder: Path, threads: int) -> None:
        self._generator = ctranslate2.Generator(str(folder), device="cpu", intra_threads=threads)
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.waiting: asyncio.Queue[Job] = asyncio.Queue()

    async def run(self) -> None:
        while True:
            jobs = [await self.waiting.get()]
            await asyncio.sleep(WINDOW)
            while len(jobs) < MOST and not self.waiting.empty():
                jobs.append(self.waiting.get_nowait())
            await asyncio.to_thread(self._generate, jobs, asyncio.get_running_loop())

    def _generate(self, jobs: list[Job], loop: asyncio.AbstractEventLoop) -> None:
        def callback(result: ctranslate2.GenerationStepResult) -> bool:
            job = jobs[result.batch_id]
            job.generated.append(result.token_id)
            loop.call_soon_threadsafe(job.events.put_nowait, len(job.generated))
            return len(job.generated) >= job.asked.max_tokens

        longest = max(job.asked.max_tokens for job in jobs)
        self._generator.generate_batch(
            [job.tokens for job in jobs],
            max_batch_size=0,
            beam_size=1,
            max_length=longest,
            min_length=longest if all(job.asked.ignore_eos for job in jobs) else 0,
            include_prompt_in_result=False,
            callback=callback,
        )
        for job in jobs:
            loop.call_soon_threadsafe(job.events.put_nowait, None)


def load(folder: Path, precision: str, threads: int) -> FastAPI:
    batcher = Batcher(folder, threads)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/completions")
    async def complete(asked: Input) -> StreamingResponse:
        job = Job(asked, batcher.tokenizer.encode(asked.prompt).tokens)
        batcher.waiting.put_nowait(job)
        return StreamingResponse(events(job, batcher), media_type="text/event-stream")

    return app


async def events(job: Job, batcher: Batcher) -> AsyncIterator[str]:
    sent = ""
    while (count := await job.events.get()) is not None:
        text = batcher.tokenizer.decode(job.generated[:count])
        if not text.endswith("\ufffd"):  # half a character
            yield event(choices=[{"index": 0, "text": text[len(sent) :], "finish_reason": None}])
            sent = text
    generated = len(job.generated)
    usage = {"prompt_tokens": len(job.tokens), "completion_tokens": generated}
    yield event(choices=[{"index": 0, "text": "", "finish_reason": "length"}], usage=usage)
    yield "data: [DONE]\n\n"


def event(**values: Any) -> str:
    return f"data: {json.dumps({'object': 'text_completion', **values})}\n\n"


if __name__ == "__main__":
    http_worker.main(load)
