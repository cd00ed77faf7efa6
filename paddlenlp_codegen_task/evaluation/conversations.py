"""Programs written turn by turn, and in one turn, as the multi-turn programming benchmark has them:
https://arxiv.org/abs/2203.13474, section 4, and codegen1/benchmark of
https://github.com/salesforce/CodeGen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from paddlenlp_codegen_task import running
from paddlenlp_codegen_task.decoding.events import Failed
from paddlenlp_codegen_task.decoding.request import Request
from paddlenlp_codegen_task.evaluation.benchmark import Key, Line
from paddlenlp_codegen_task.evaluation.problems import TurnsProblem, fill
from paddlenlp_codegen_task.evaluation.sampling import Sampling
from paddlenlp_codegen_task.generator import CodeGenerator
from paddlenlp_codegen_task.model.tokenizer import Tokenizer
from paddlenlp_codegen_task.requests import Call, Completion

PREFIX = "# Import libraries.\n\nimport numpy as np\n\n"
AFTER = "\n\n"  # what stands between a turn's program and the next turn's comment
MODES = ("multi-turn", "single-turn")


@dataclass
class Conversation:
    """A program that is being written.

    Attributes:
        key: tells it from others.
        comments: one of each turn.
        max_length: most new tokens of a turn.
        programs: of the turns that are over.
        log_probs: of each turn's comment: how many tokens it has, and the sum of their
            log-probabilities; once all turns are over.
        tokens: generated so far.
    """

    key: Key
    comments: list[str]
    max_length: int
    programs: list[str] = field(default_factory=list)
    log_probs: list[tuple[int, float]] = field(default_factory=list)
    tokens: int = 0

    @classmethod
    def of(cls, problem: TurnsProblem, key: Key) -> Conversation:
        """Begin one: in a single turn, all comments stand before all of the program."""
        inputs = problem.inputs[key[1]]
        comments = [f"# {fill(prompt, inputs)}\n" for prompt in problem.prompts]
        if key[2] == "multi-turn":
            return cls(key, comments, problem.max_length)
        return cls(key, ["".join(comments)], problem.max_length * len(comments))

    @property
    def is_over(self) -> bool:
        """Whether all turns are over."""
        return len(self.programs) == len(self.comments)

    @property
    def prompt(self) -> str:
        """What the next turn completes."""
        return self.program + self.comments[len(self.programs)]

    @property
    def program(self) -> str:
        """All that is there."""
        turns = zip(self.comments, self.programs, strict=False)
        return PREFIX + "".join(comment + program + AFTER for comment, program in turns)

    def take(self, completion: Completion, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        """Take what a turn has come to; of the last one, with its prompt's log-probabilities."""
        if completion.prompt_logprobs is not None:
            found = [0.0 if one is None else next(iter(one.values()))
                     for one in completion.prompt_logprobs]  # fmt: skip
            self._measure([len(tokenizer.token_bytes(one)) for one in prompt_ids], found)
        self.programs.append(completion.text)
        self.tokens += len(completion.token_ids)

    def _measure(self, sizes: list[int], log_probs: list[float]) -> None:
        """Add up the log-probabilities of the tokens of each comment.

        Args:
            sizes: bytes of each of the prompt's tokens.
            log_probs: of the same tokens.
        """
        end = len(self.prompt.encode())
        comments, at = [], len(PREFIX.encode())
        for comment, program in zip(self.comments, [*self.programs, ""], strict=True):
            size = len(comment.encode())
            comments.append(range(at, at + size))
            at += size + len((program + AFTER).encode())
        counted = [(0, 0.0)] * len(comments)
        position = end - sum(sizes)  # above 0 where the prompt's beginning did not fit
        for size, log_prob in zip(sizes, log_probs, strict=True):
            for turn, span in enumerate(comments):
                if position in span:
                    count, total = counted[turn]
                    counted[turn] = count + 1, total + log_prob
            position += size
        self.log_probs = counted

    def line(self) -> Line:
        """What is written of it."""
        task_id, case, mode, temperature, number = self.key
        return {
            "task_id": task_id,
            "input": case,
            "mode": mode,
            "temperature": temperature,
            "sample": number,
            "completion": self.program,
            "turns": self.programs,
            "tokens": self.tokens,
            "prompt_tokens": [count for count, _ in self.log_probs],
            "prompt_log_probs": [total for _, total in self.log_probs],
        }


def converse(
    generator: CodeGenerator,
    problems: Mapping[str, TurnsProblem],
    sampling: Sampling,
    keys: Iterator[Key],
) -> Iterator[list[Line]]:
    """Have programs written, all in one run; a turn follows as soon as the one before is over.

    Each is the text that a session of the generator comes to. With a prefix cache a turn computes
    what it adds alone.

    Args:
        generator: what writes them.
        problems: by their ids.
        sampling: how.
        keys: of the programs: a problem's id, the test case, the mode, temperature, sample.

    Returns:
        An iterator of programs, as they come.
    """
    jobs = _Turns(generator, sampling, (Conversation.of(problems[key[0]], key) for key in keys))
    for (conversation, call), event in running.ended(generator.engine, jobs, generator.batch_size):
        if isinstance(event, Failed):
            raise event.error
        [completion] = call.completions(event.request, event.rows)
        conversation.take(completion, generator.tokenizer, event.request.prompt_ids)
        if conversation.is_over:
            yield [conversation.line()]
        else:
            jobs.waiting.append(conversation)


class _Turns(Iterator[tuple[tuple[Conversation, Call], Call, Request]]):
    """The next turns: of programs that were begun before those of new ones.

    Attributes:
        waiting: programs that were begun, and whose turn is over.
    """

    def __init__(
        self, generator: CodeGenerator, sampling: Sampling, new: Iterator[Conversation]
    ) -> None:
        self.waiting: deque[Conversation] = deque()
        self._generator, self._sampling, self._new = generator, sampling, new

    def __next__(self) -> tuple[tuple[Conversation, Call], Call, Request]:
        one = self.waiting.popleft() if self.waiting else next(self._new)
        turn = len(one.programs)
        call = self._generator.call(
            **self._sampling.options(one.key[3], *one.key, turn),
            max_length=self._sampling.max_length or one.max_length,
            truncation="salesforce",
            prompt_logprobs=0 if turn == len(one.comments) - 1 else None,
        )
        return (one, call), call, call.request(one.prompt, turn)
