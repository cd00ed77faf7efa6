"""How rows start: which prompts run in one step, what of them is held already, where rows begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from paddlenlp_codegen_task.decoding import sampling
from paddlenlp_codegen_task.decoding.admission import Admission, Start
from paddlenlp_codegen_task.decoding.request import Request, Row
from paddlenlp_codegen_task.decoding.slots import Slots
from paddlenlp_codegen_task.runtime.base import PREFILL_CHUNK, StepOutput

# Prompts are run together, up to a prefill chunk, if padding them to the longest adds at most this
# share of work, or if all with padding are a small part of a chunk: then a step costs reading the
# weights.
PADDING_SHARE = 0.25
SMALL_PREFILL = 0.25
HEADROOM = 64  # tokens that a row must have room for beyond its prompt to start


@dataclass(eq=False)
class _Prefill:
    """Prompts being run: several in one step, or a long one chunk by chunk.

    Attributes:
        starts: of each prompt, the rows that go on from it.
        done: tokens of the only prompt that its slot holds.
        log_probs: of its tokens up to there, if they were asked for: see Request.
    """

    starts: list[Start]
    done: int
    log_probs: list[dict[int, float]] = field(default_factory=list)

    @property
    def scores(self) -> bool:
        """Whether log-probabilities of the only prompt are wanted."""
        return self.starts[0].request.scores_prompt


class Starting:
    """Brings waiting rows into slots. Between steps, one prompt at most is part done."""

    def __init__(self, slots: Slots, admission: Admission, most: int) -> None:
        """Bring rows of `admission` into `slots`, with at most so many tokens of prefill a step."""
        self._slots = slots
        self._admission = admission
        self._most = most
        self._prefill: _Prefill | None = None
        # What followed the prompt, of requests with rows that have not started.
        self._first_outputs: dict[Request, StepOutput] = {}
        # The latest prompt whose end was taken back, and what followed it: the next key that is
        # typed within a word leaves the same prompt again.
        self._healed: tuple[list[int], StepOutput] | None = None

    @property
    def under_way(self) -> bool:
        """Whether a prompt is being run."""
        return self._prefill is not None

    @property
    def copies(self) -> int:
        """Slots that rows will take beside those of the prompts being run, which they copy."""
        work = self._prefill
        return sum(len(start.rows) - 1 for start in work.starts) if work is not None else 0

    def plan(self) -> list[Row]:
        """Take what starts next, up to prompts that have to be run: `chunk` gives those.

        Returns:
            The rows that run at once, since their prompts are held; `first_output` is theirs.
        """
        begun: list[Row] = []
        group: list[Start] = []

        def accepts(request: Request, count: int, tokens: int) -> bool:
            return self._accepts(group, request, count, tokens)

        while self._prefill is None and (start := self._admission.next(accepts)) is not None:
            same = [one for one in group if one.request is start.request]
            if same:
                same[0].rows += start.rows
            elif not group and self._begin_held(start):
                begun += start.rows
            else:
                group.append(start)
        if group:
            self._prefill = self._begin_prefill(group)
        return begun

    def chunk(self) -> Sequence[Sequence[int]]:
        """The tokens that the slots behind the running rows take next; none if nothing waits."""
        if self._prefill is None:
            return []
        prompts = [start.request.prompt_ids for start in self._prefill.starts]
        if len(prompts) > 1:
            return prompts
        # With the logits of every token, which take 200 kB each, no more than on a CPU.
        most = PREFILL_CHUNK if self._prefill.scores else self._most
        return [prompts[0][self._prefill.done : self._prefill.done + most]]

    @property
    def requests(self) -> frozenset[Request]:
        """Those that `chunk` is of."""
        starts = self._prefill.starts if self._prefill is not None else []
        return frozenset(start.request for start in starts)

    @property
    def scored(self) -> Request | None:
        """The request that needs the step's output of every token of `chunk`."""
        work = self._prefill
        return work.starts[0].request if work is not None and work.scores else None

    @property
    def only(self) -> Request | None:
        """The request whose prompt is run by itself; None if several are."""
        work = self._prefill
        return work.starts[0].request if work is not None and len(work.starts) == 1 else None

    def take(self, output: StepOutput) -> tuple[list[Row], StepOutput]:
        """A step has run `chunk`: have rows run whose prompts are done.

        Returns:
            The rows that are new, and of each its prompt's output.
        """
        work = self._prefill
        assert work is not None
        chunk = self.chunk()
        if work.scores:
            output = self._score(work, len(chunk[0]), output)
        work.done += len(chunk[0])
        if len(work.starts) == 1 and work.done < len(work.starts[0].request.prompt_ids):
            return [], output
        self._prefill, self._slots.prefilling = None, 0
        request = work.starts[0].request
        if len(work.starts) == 1 and request.healing is not None:
            self._healed = list(request.prompt_ids), output.take([0]).keep()
        first = len(self._slots.rows)
        rows, of_start = [start.rows[0] for start in work.starts], list(range(len(work.starts)))
        for row in rows:
            self._slots.append(row)
        for n, start in enumerate(work.starts):
            for row in start.rows[1:]:
                self._slots.append(row, first + n)
                rows.append(row)
                of_start.append(n)
            if self._admission.unstarted(start.request):
                self._first_outputs[start.request] = output.take([n]).keep()
        new = [n for n, row in enumerate(rows) if not row.token_ids]
        return [rows[n] for n in new], output.take([of_start[n] for n in new])

    def first_output(self, request: Request) -> StepOutput | None:
        """What followed a request's prompt, as long as rows of it may want that."""
        return self._first_outputs.get(request)

    def set_back(self) -> None:
        """Have the rows of the prompt that is being run wait again."""
        if self._prefill is not None:
            for start in self._prefill.starts:
                self._admission.set_back(start)
            self._drop()

    def runs(self, request: Request) -> bool:
        """Whether the prompts being run have that of a request; more than one if interrupted."""
        return request in self.requests

    def remove(self, request: Request, broken: bool) -> None:
        """Forget a request that has ended; `broken` if its keys and values are not numbers."""
        if self._prefill is not None and self.runs(request):
            for start in self._prefill.starts:
                if start.request is request:
                    for row in start.rows:
                        self._admission.left(row)
                else:  # whose prompt was to run in the same step
                    self._admission.set_back(start)
            self._drop(broken)
        self._first_outputs.pop(request, None)

    def clear(self) -> None:
        """Forget everything."""
        self._prefill = self._healed = None
        self._first_outputs.clear()

    def _score(self, work: _Prefill, tokens: int, output: StepOutput) -> StepOutput:
        """Note what the model gives the tokens of a prompt; return the last one's output."""
        request = work.starts[0].request
        count = request.parameters.prompt_logprobs
        assert count is not None, "they are asked for"
        following = request.prompt_ids[work.done + 1 : work.done + tokens + 1]
        work.log_probs += sampling.prompt_log_probs(output, following, count)
        if work.done + tokens == len(request.prompt_ids):
            request.prompt_log_probs = work.log_probs
        return output.take([tokens - 1])

    def _drop(self, broken: bool = False) -> None:
        """Give up a prompt that is being run; what has been run is kept, unless it is broken."""
        work, self._prefill = self._prefill, None
        held: Sequence[int] = ()
        if work is not None and len(work.starts) == 1 and not broken:
            held = work.starts[0].request.prompt_ids[: work.done]
        self._slots.drop_prefill(held, broken)

    def _accepts(self, group: list[Start], request: Request, count: int, tokens: int) -> bool:
        """Whether rows may start in the same step as those of `group`."""
        rows = sum(len(start.rows) for start in group) + count
        longest = max([tokens, *(len(start.rows[0].history) for start in group)])
        if not self._slots.room_for(rows, longest + _headroom(request, tokens)):
            return False
        if not group or any(start.request is request for start in group):
            return True
        if request.scores_prompt or group[0].request.scores_prompt:
            return False
        prompts = [*(len(one.request.prompt_ids) for one in group), len(request.prompt_ids)]
        padded = max(prompts) * len(prompts)
        if padded > self._most or self._sibling(request) is not None:
            return False
        if padded > max((1 + PADDING_SHARE) * sum(prompts), SMALL_PREFILL * self._most):
            return False
        # One whose beginning is in the cache is run by itself: what is left of it is short.
        both = group[0].request, request
        return not any(self._slots.cached(one.prompt_ids) for one in both)

    def _sibling(self, request: Request) -> int | None:
        """The slot of a row of a request that runs, if what followed the prompt is known."""
        if request not in self._first_outputs:
            return None
        slots = (n for n, row in enumerate(self._slots.rows) if row.request is request)
        return next(slots, None)

    def _begin_held(self, start: Start) -> bool:
        """Have a row run whose prompt is held already; return whether it is."""
        [row, *others] = start.rows
        if others:
            return False
        source = self._sibling(start.request)
        if source is None and row.token_ids:
            # One that was set back goes on from as much of its text as is kept.
            expected = self._admission.expected()
            kept = self._slots.restorable(row)
            held = self._slots.reserve(1, len(row.history), expected, kept)
            if held < len(start.request.prompt_ids):
                return False
        elif source is None and not self._ran_last(row):
            return False
        self._slots.append(row, source)
        return True

    def _ran_last(self, row: Row) -> bool:
        """Whether the prompt of a row is the one that ran last, and is held: nothing of it runs."""
        request = row.request
        prompt_ids = list(request.prompt_ids)
        if self._healed is None or self._healed[0] != prompt_ids or request.scores_prompt:
            return False
        if not self._slots.resume(prompt_ids):
            return False
        self._first_outputs[request] = self._healed[1]
        row.cached_tokens = len(prompt_ids)
        return True

    def _begin_prefill(self, starts: list[Start]) -> _Prefill:
        """Make room for prompts, and take from the prefix cache what it has of a single one."""
        rows = sum(len(start.rows) for start in starts)
        lengths = [(start.request, len(row.history)) for start in starts for row in start.rows]
        longest = max(tokens for _, tokens in lengths)
        # Room for what follows them: to grow within the first steps would copy what is held.
        roomy = max(tokens + _headroom(request, tokens) for request, tokens in lengths)
        if self._slots.room_for(rows, roomy):
            longest = roomy
        # Of what is restored, no output comes.
        alone = len(starts) == 1 and not starts[0].request.scores_prompt
        prompt_ids = starts[0].request.prompt_ids if alone else ()
        done = self._slots.reserve(rows, longest, self._admission.expected(), prompt_ids)
        for start in starts:
            start.rows[0].cached_tokens = done
        self._slots.prefilling = len(starts)
        return _Prefill(starts, done)


def _headroom(request: Request, tokens: int) -> int:
    """Tokens that a row of so many is to have room for beyond them."""
    return max(min(HEADROOM, request.most_tokens - tokens), 0)
