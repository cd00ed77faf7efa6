"""Continuous batching: sequences join and leave at every step, whichever call they belong to."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from paddlenlp_codegen_task.decoding.prefix_cache import PrefixCache
from paddlenlp_codegen_task.decoding.sampling import Sampler
from paddlenlp_codegen_task.decoding.sequence import Advancer, Sequence
from paddlenlp_codegen_task.decoding.speculation import Drafter, Pace
from paddlenlp_codegen_task.runtime.base import (
    PREFILL_CHUNK,
    Runtime,
    StepOutput,
    decode,
    extend,
    prefill,
)

# Prompts are run together, up to a prefill chunk, if padding them to the longest adds at most this
# share of work, or if all with padding are few tokens: then a step costs reading the weights.
PADDING_SHARE = 0.25
SMALL_PREFILL = 64


@dataclass(eq=False)
class Job:
    """The sequences of one call, and how far they are.

    Attributes:
        sequences: what to generate; each is asked for when there is room for it.
        batch_size: most of them to run at once.
        together: how many that follow one another start together, as the beams of a prompt do.
        running: how many run now.
        started: how many have been started so far.
        finished: those that are done, in the order in which they finished.
        cancelled: set at any time to give the job up; its slots are freed before the next step.
        error: what made a step fail; the job is over then.
    """

    sequences: Iterable[Sequence]
    batch_size: int
    together: int = 1
    running: int = 0
    started: int = 0
    finished: list[Sequence] = field(default_factory=list)
    cancelled: bool = False
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self._rest = iter(self.sequences)
        self.waiting = next(self._rest, None)  # the only one made before it can run
        self.first_output: StepOutput | None = None  # of the prompt of the sequence that waits

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.error is not None or self.cancelled or not (self.waiting or self.running)

    def pop(self) -> Sequence:
        """Take the waiting sequence: it counts as running."""
        assert self.waiting is not None
        self.running += 1  # before nothing waits: another thread may ask whether this is done
        popped, self.waiting = self.waiting, next(self._rest, None)
        self.started += 1
        if self.waiting is None or self.waiting.prompt_ids is not popped.prompt_ids:
            self.first_output = None
        return popped


class Scheduler:
    """Runs the sequences of any number of jobs on one runtime.

    Running sequences occupy the slots 0, 1, ...; when one leaves, the last takes its slot, so that
    a step never runs an empty one. Not for several threads at once, but for `Job.cancelled`.
    """

    def __init__(
        self, runtime: Runtime, prefix_cache: PrefixCache | None = None, batch_size: int = 1
    ) -> None:
        """Run jobs on `runtime`, which nothing else may use, `batch_size` sequences at once.

        A job that asks for more at once gets them.
        """
        self._runtime = runtime
        self._batch_size = batch_size
        self.prefix_cache = prefix_cache
        self._jobs: list[Job] = []
        self._running: list[tuple[Sequence, Job]] = []  # the place is the slot
        self._pace = Pace()

    def submit(self, job: Job) -> None:
        """Have a job run by the next steps, beside those that run."""
        self.drop_cancelled()
        if not self._jobs:
            self._runtime.reset(job.batch_size)
        self._jobs.append(job)

    def step(self) -> None:
        """Start what there is room for, then give every running sequence one token.

        Raises:
            Exception: what the runtime or a sampler raised. All jobs are over then, with that as
                their error, and the buffers are freed: what is in them may be anything.
        """
        try:
            self._drop_cancelled()
            self._start_waiting()
            if len(self._running) == 1 and self._running[0][0].drafter is not None:
                self._speculate(self._running[0][0], self._running[0][0].drafter)
            elif self._running:
                sequences = [sequence for sequence, _ in self._running]
                output = decode(self._runtime, [one.token_ids[-1] for one in sequences])
                self._advance(output, sequences, 0)
            self._retire()
            self._jobs = [job for job in self._jobs if not job.done]
        except BaseException as error:
            self.fail(error)
            raise

    def fail(self, error: BaseException) -> None:
        """End all jobs with an error, and free the buffers: what is in them may be anything."""
        for job in self._jobs:
            job.error = error
        self._jobs.clear()
        self._running.clear()
        self._runtime.clear()

    def _start_waiting(self) -> None:
        """Prefill waiting prompts while there are slots.

        First the job that runs fewest and, of those, the one that has started fewest. If it has to
        wait for several slots at once, nobody takes one before it.
        """
        while True:
            limit = max(self._batch_size, *(job.batch_size for job in self._jobs), 0)
            waiting = [
                job
                for job in self._jobs
                if job.waiting and job.batch_size - job.running >= job.together
            ]
            if not waiting:
                return
            job = min(waiting, key=lambda one: (one.running, one.started))
            room = min(limit - len(self._running), job.batch_size - job.running)
            if room < job.together:
                return
            if not self._start_sample(job):
                group = _next_group(job, room // job.together * job.together, self.prefix_cache)
                output = self._prefill(group)
                following = job.waiting if job.together == 1 else None
                if following is not None and following.prompt_ids is group[-1].prompt_ids:
                    job.first_output = _copy(output)
                self._running += [(sequence, job) for sequence in group]
            self._retire()

    def _start_sample(self, job: Job) -> bool:
        """Start a sample in the next slot from another one of its prompt, if one runs."""
        if job.first_output is None or job.waiting is None:
            return False
        for source, (sequence, _) in enumerate(self._running):
            if sequence.prompt_ids is job.waiting.prompt_ids:
                slot = len(self._running)
                self._runtime.copy(source, slot)
                self._go_on(slot, job)
                return True
        return False

    def _go_on(self, slot: int, job: Job) -> None:
        """Start the sample that waits in a slot that begins with its prompt."""
        output = job.first_output
        assert output is not None
        sequence = job.pop()
        self._running[slot : slot + 1] = [(sequence, job)]
        self._runtime.cache.lengths[slot] = len(sequence.prompt_ids)
        self._advance(output, [sequence], slot)

    def _prefill(self, group: list[Sequence]) -> StepOutput:
        """Start sequences in the next slots. Those that share a prompt share its prefill.

        Returns:
            The output of the last prompt's last token.
        """
        slot, prompts = len(self._running), [group[0].prompt_ids]
        rows = [0]  # of the step, for each sequence
        for before, one in pairwise(group):
            if one.prompt_ids is not before.prompt_ids:
                prompts.append(one.prompt_ids)
            rows.append(len(prompts) - 1)
        kept = 0
        if self.prefix_cache is not None and len(prompts) == 1:
            kept = self.prefix_cache.restore(self._runtime, slot, prompts[0])
        if kept:
            output = extend(self._runtime, slot, [prompts[0][kept:]])
        else:
            output = prefill(self._runtime, slot, prompts)
        # From the last on: a row's own slot is overwritten only once those after it have copied.
        for n in reversed(range(len(group))):
            if rows[n] != n:
                self._runtime.copy(slot + rows[n], slot + n)
        self._advance(output if len(prompts) == len(group) else output.take(rows), group, slot)
        return output.take([len(prompts) - 1])

    def _advance(self, output: StepOutput, sequences: list[Sequence], slot: int) -> None:
        """Give the sequences in the slots from `slot` on their next tokens, each by its sampler."""
        rows_of: dict[Advancer, list[int]] = {}
        for row, sequence in enumerate(sequences):
            rows_of.setdefault(sequence.sampler, []).append(row)
        for sampler, rows in rows_of.items():
            part = output if len(rows_of) == 1 else output.take(rows)
            for source, target in sampler.advance(part, [sequences[row] for row in rows]):
                self._runtime.copy(slot + rows[source], slot + rows[target])

    def _speculate(self, sequence: Sequence, drafter: Drafter) -> None:
        """Give the one sequence that runs the tokens of a draft that prove right, and one more."""
        start = time.perf_counter()
        room = sequence.max_length - len(sequence.token_ids) - 1
        kind, draft = drafter.draft(sequence, self._pace, room)
        drafted = time.perf_counter()
        length = self._runtime.cache.lengths[0]
        output = self._runtime.forward(0, [[sequence.token_ids[-1], *draft]], every=True)
        assert isinstance(sequence.sampler, Sampler), "beams are not drafted"
        count = sequence.sampler.verify(output, sequence, draft)
        self._runtime.cache.lengths[0] = length + count + 1  # what follows was wrong
        seconds = time.perf_counter() - drafted
        if draft:
            self._pace.note_draft(kind, len(draft), drafted - start)
            self._pace.note_verified(kind, len(draft), count, seconds)
        else:
            self._pace.note_plain(seconds)

    def _retire(self) -> None:
        """Take finished sequences out of the slots."""
        for slot in reversed(range(len(self._running))):
            sequence, job = self._running[slot]
            while sequence.finish_reason is not None:
                self._keep(slot)
                sequence.release()
                job.finished.append(sequence)
                handed_over = self._hand_over(slot)
                job.running -= 1
                if not handed_over:
                    self._free(slot)
                    break
                sequence, _ = self._running[slot]

    def _hand_over(self, slot: int) -> bool:
        """Let the next sample of a prompt go on from the prompt's end, in the slot that holds it.

        Not if other jobs wait for a slot.
        """
        sequence, job = self._running[slot]
        if job.first_output is None or job.waiting is None or job.cancelled:
            return False
        others = any(one.waiting for one in self._jobs if one is not job)
        if others or job.waiting.prompt_ids is not sequence.prompt_ids:
            return False
        self._go_on(slot, job)
        return True

    def drop_cancelled(self) -> None:
        """Free the slots of cancelled jobs.

        Raises:
            Exception: what the runtime raised; all jobs are over then, as in `step`.
        """
        try:
            self._drop_cancelled()
        except BaseException as error:
            self.fail(error)
            raise

    def _drop_cancelled(self) -> None:
        for slot in reversed(range(len(self._running))):
            if self._running[slot][1].cancelled:
                self._keep(slot)
                self._free(slot)
        self._jobs = [job for job in self._jobs if not job.cancelled]

    def _keep(self, slot: int) -> None:
        """Keep what a slot holds, if there is a cache."""
        sequence, job = self._running[slot]
        if self.prefix_cache is not None:
            # A beam's slot holds the prompt, and then not what the search has found.
            new = sequence.token_ids if job.together == 1 else []
            held = [*sequence.prompt_ids, *new][: self._runtime.cache.lengths[slot]]
            self.prefix_cache.save(self._runtime, slot, held)

    def _free(self, slot: int) -> None:
        """Close the gap that a slot leaves."""
        last = self._running.pop()
        if slot < len(self._running):
            self._runtime.copy(len(self._running), slot)
            self._running[slot] = last


def _copy(output: StepOutput) -> StepOutput:
    """An output that outlives the next step."""
    logits = np.array(output.logits())
    return StepOutput(output.candidates, output.candidate_ids, lambda: logits)


def _next_group(job: Job, room: int, cache: PrefixCache | None) -> list[Sequence]:
    """Take the sequences at the front whose prompts are worth running in one step.

    A prompt whose beginning is in the cache is run by itself: what is left of it is short.
    """
    group = [job.pop()]
    alone = cache is not None and cache.holds(group[0].prompt_ids)
    longest = total = len(group[0].prompt_ids)
    prompts = 1
    while job.waiting and len(group) < room:
        if job.waiting.prompt_ids is not group[-1].prompt_ids:  # else it shares the prefill
            length = len(job.waiting.prompt_ids)
            longest, total, prompts = max(longest, length), total + length, prompts + 1
            padded = longest * prompts
            worthwhile = padded <= max((1 + PADDING_SHARE) * total, SMALL_PREFILL)
            if alone or not worthwhile or padded > PREFILL_CHUNK:
                break
            if cache is not None and cache.holds(job.waiting.prompt_ids):
                break
        group.append(job.pop())
    return group
