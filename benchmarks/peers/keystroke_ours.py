"""This package at each keystroke: the engine and the options that the server has for an editor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keystroke_worker
import ours

from paddlenlp_codegen_task import CodeGenerator
from paddlenlp_codegen_task.decoding.events import Failed, Finished, Forward, Text
from paddlenlp_codegen_task.engine import Mailbox

CACHE_BYTES = 1 << 30  # of the prefix cache; the server takes a quarter of what is free
BATCH_SIZE = 32  # the server's


class Ours:
    def __init__(self, generator: CodeGenerator) -> None:
        self._generator = generator
        self._steps = 0  # behind the prompt
        generator.add_step_hook(self._count)
        _ = generator.tokenizer.spelling  # as the server does, before anybody asks

    def _count(self, step: Forward) -> None:
        self._steps += step.kind != "prefill"

    def complete(self, prompt: str, new_tokens: int, enough: Callable[[], bool]) -> int:
        call = self._generator.call(
            streamed=True,
            max_length=new_tokens,
            decode_strategy="greedy_search",
            repetition_penalty=1.0,
            truncation=None,
            ignore_eos=True,
            token_healing=True,
        )
        request = call.request(prompt, 0)
        healed = 0 if request.healing is None else request.healing.count
        # Tokens that only spell what was taken back are no new ones: there may be as many more.
        request.max_length += healed
        self._steps, begun = 0, False
        engine = self._generator.engine
        mailbox = Mailbox(engine)
        engine.submit([request], mailbox)
        try:
            while True:
                for event in mailbox.take():
                    if isinstance(event, Text) and event.text and not begun:
                        begun = True
                        request.max_length = min(request.max_length, self._steps + new_tokens)
                    if isinstance(event, Failed):
                        raise event.error
                    if isinstance(event, Finished) or (event.text and enough()):
                        return len(request.prompt_ids) + healed
        finally:
            engine.cancel([request])


def load(folder: Path, precision: str, threads: int) -> Ours:
    options = {"batch_size": BATCH_SIZE, "prefix_cache_bytes": CACHE_BYTES}
    return Ours(ours.generator(folder, precision, threads, **options))


if __name__ == "__main__":
    keystroke_worker.main(load)
