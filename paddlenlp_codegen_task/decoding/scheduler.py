"""Continuous batching: rows join and leave at every step, whichever request they belong to."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from paddlenlp_codegen_task.decoding import beam_rows, sampling
from paddlenlp_codegen_task.decoding.admission import Admission, Start
from paddlenlp_codegen_task.decoding.beam_search import BeamSearch
from paddlenlp_codegen_task.decoding.events import Event, Failed, Finished, Forward, Text
from paddlenlp_codegen_task.decoding.pace import Pace
from paddlenlp_codegen_task.decoding.prefix_cache import PrefixCache
from paddlenlp_codegen_task.decoding.request import Request, Row
from paddlenlp_codegen_task.decoding.slots import Slots
from paddlenlp_codegen_task.decoding.speculation import Speculation
from paddlenlp_codegen_task.decoding.starting import Starting
from paddlenlp_codegen_task.runtime.base import Interrupted, Runtime, StepOutput, prefill_chunk
from paddlenlp_codegen_task.runtime.kv_cache import KVCacheFull

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Live:
    """A request that has not ended: its beams if it has some, and its rows that have ended."""

    search: BeamSearch | None
    ended: dict[int, Row] = field(default_factory=dict)  # by index


class Scheduler:
    """Runs any number of requests on one runtime. One thread at a time may use it.

    Attributes:
        hooks: called after each forward step; one that raises is dropped.
        slots: the rows that run.
    """

    def __init__(
        self, runtime: Runtime, batch_size: int = 1, prefix_cache: PrefixCache | None = None
    ) -> None:
        """Run `batch_size` rows at once on `runtime`, which nothing else may use."""
        self.hooks: list[Callable[[Forward], None]] = []
        self._speculation = Speculation()
        self.slots = Slots(runtime.cache, prefix_cache, prompts_only=not runtime.same_products)
        self._runtime = runtime
        self._admission = Admission(batch_size)
        self._starting = Starting(self.slots, self._admission, prefill_chunk(runtime))
        self._live: dict[Request, _Live] = {}
        self._events: list[Event] = []
        self._successors: list[Row] = []  # have a slot with their prompt, and no token yet
        self._served: frozenset[Request] = frozenset()  # by the forward step that runs

    @property
    def pace(self) -> Pace:
        """How many tokens are drafted."""
        return self._speculation.pace

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        waiting = self._starting.under_way or self._admission.waiting
        return bool(self.slots.rows) or waiting

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn, or for more of it."""
        return self._admission.requests

    @property
    def requests(self) -> list[Request]:
        """Those that have not ended."""
        return list(self._live)

    def add(self, request: Request) -> None:
        """Have a request run by the next steps, beside those that run.

        Raises:
            KVCacheFull: it could never run within the budget of the KV cache.
        """
        rows = request.samples if request.beams else 1
        if not self._runtime.cache.fits(rows, request.most_tokens):
            raise KVCacheFull(f"{request.most_tokens} tokens of {rows} rows do not fit")
        self._live[request] = _Live(beam_rows.search(request) if request.beams else None)
        self._admission.add(request)

    def cancel(self, request: Request) -> None:
        """Give a request up; nothing happens if it has ended."""
        if request in self._live:
            self._remove(request)

    def interrupt(self, requests: Iterable[Request]) -> None:
        """End the forward step that runs if it serves none but these; from any thread.

        Whoever wants that has them cancelled too: those that are not go on with the next step.
        """
        served = self._served
        if served and served.issubset(requests):
            self._runtime.interrupt()

    def hold(self, request: Request) -> None:
        """Set a request back, and leave it be until it is released."""
        if request in self._live and not self._admission.held(request):
            self._set_back(request)
            self._admission.hold(request)

    def release(self, request: Request) -> None:
        """Have a held request go on; nothing happens if it is not held, or has ended."""
        if request in self._live and self._admission.held(request):
            self._admission.release(request)

    def step(self) -> list[Event]:
        """Give every running row its next token, then run at most one chunk of prefill.

        Returns:
            What has happened. If the runtime fails, all requests have, each with an error of its
            own, and the buffers are freed.
        """
        try:
            with suppress(Interrupted):  # what was not done is left for the next step
                self._decode()
                self._advance_successors()
                self._start()
            self._advance_successors()
        except Exception as error:
            logger.debug("a step failed", exc_info=True)
            self.fail(error)
        events, self._events = self._events, []
        return events

    def fail(self, error: Exception) -> None:
        """End all requests, each with an error like this; the next step tells of it."""
        for request in self._live:
            self._events.append(Failed(request, _own(error)))
        self._live.clear()
        self._successors.clear()
        self._admission.clear()
        self._starting.clear()
        self.slots.clear()

    # Decoding: plan what every row is fed, forward, apply what comes of it.

    def _decode(self) -> None:
        self._make_room()
        rows = self.slots.rows
        if not rows:
            return
        fed, current = [], []
        for slot, row in enumerate(rows):
            position = self._runtime.cache.length(slot) - len(row.request.prompt_ids)
            fed.append([row.token_ids[position]])
            # A row that was set back is first fed what it had generated, and gives nothing new.
            if position == len(row.token_ids) - 1:
                current.append(slot)
        if len(rows) == 1 and current and rows[0].drafters:
            kind, draft = self._speculation.draft(rows[0])
            # The row has room for one token; for more there need not be any.
            copies, tokens = self._starting.copies, self.slots.longest + 1 + len(draft)
            if draft and self.slots.room_for(copies, tokens):
                self._verify(rows[0], kind, draft)
                return
        output, seconds = self._forward("decode", 0, fed)
        if len(rows) == 1 and rows[0].drafters:
            self.pace.note_plain(seconds)
        if len(current) < len(rows):
            output = output.take(current)
        self._advance([rows[slot] for slot in current], output)

    def _make_room(self) -> None:
        """Let every running row take one more token; where the budget forbids it, set some back."""
        cache = self._runtime.cache
        while self.slots.rows:
            # Rows that share a prompt which is being run have been promised room, too.
            slots, tokens = self.slots.used + self._starting.copies, self.slots.longest + 1
            if cache.holds(slots, tokens):
                break
            if cache.fits(slots, tokens):
                cache.reserve(slots, tokens)
            elif self._starting.under_way:  # the newest of all
                self._starting.set_back()
            else:
                youngest = max(self.slots.rows, key=lambda row: row.age)
                if youngest.request.beams:
                    self._set_back(youngest.request)
                else:
                    self.slots.remove(youngest)
                    self._admission.set_back(Start(youngest.request, [youngest]))

    def _advance(self, rows: Sequence[Row], output: StepOutput) -> None:
        """Give rows their next tokens; row i of `output` belongs to rows[i]."""
        plain = [n for n, row in enumerate(rows) if row.request.beams is None]
        if plain:
            part = output if len(plain) == len(rows) else output.take(plain)
            choice = sampling.choose(part, [sampling.context(rows[n]) for n in plain])
            for at, n in enumerate(plain):
                note = choice.notes[at] if choice.notes else None
                self._append(rows[n], choice.tokens[at], note)
        searches: dict[Request, list[int]] = {}
        for n, row in enumerate(rows):
            if row.request.beams is not None:
                searches.setdefault(row.request, []).append(n)
        for request, places in searches.items():
            places.sort(key=lambda n: rows[n].index)  # slots may be in another order
            self._advance_beams(request, [rows[n] for n in places], output.take(places))

    def _append(self, row: Row, token_id: int | None, note: sampling.Note | None = None) -> bool:
        """Give a row its next token; return whether it goes on."""
        request = row.request
        if request not in self._live:
            return False  # another row of it has failed
        if token_id is None:
            self._fail_request(request, FloatingPointError(sampling.NOT_NUMBERS), broken=True)
            return False
        if note is not None:
            _take_note(row, note)
        try:
            _append(row, token_id)
            if request.streamed:
                self._tell(row)
        except Exception as error:  # of its truncation, or of memory for its text
            self._fail_request(request, error)
            return False
        if row.finish_reason is not None:
            self._retire(row)
        return row.finish_reason is None

    def _tell(self, row: Row) -> None:
        """Tell of the text of a row that has become certain."""
        done = row.finish_reason is not None
        text = row.stops.text if done else row.stops.settled
        if done or len(text) > row.shown:
            new = text[row.shown :]
            log_probs = row.noted(row.told)
            self._events.append(Text(row.request, row.index, new, row.finish_reason, log_probs))
            row.shown, row.told = len(text), row.told + len(log_probs)

    def _retire(self, row: Row) -> None:
        """Take a row out that has ended; the next of its request may go on in its slot."""
        live, request = self._live[row.request], row.request
        live.ended[row.index] = row
        row.release()
        self._admission.left(row)
        successor = None
        if self._starting.first_output(request) is not None:
            successor = self._admission.successor(request)
        if successor is None:
            self.slots.remove(row)
        else:
            self.slots.replace(row, successor)
            self._successors.append(successor)
        if request in self._live and len(live.ended) == request.samples:
            rows = [live.ended[index] for index in range(request.samples)]
            self._end(request)
            self._events.append(Finished(request, rows))

    def _advance_successors(self) -> None:
        """Give rows that have taken another's place their first tokens; they may end by that."""
        while self._successors:
            row = self._successors.pop()
            output = self._starting.first_output(row.request)
            if output is not None:  # else its request has ended
                self._begin([row], output)

    # Speculation.

    def _verify(self, row: Row, kind: str, draft: list[int]) -> None:
        """Give a row the tokens of a draft that prove right, and the one after them."""
        cache = self._runtime.cache
        length = cache.length(0)
        contexts = sampling.contexts_after(row, draft)
        output, seconds = self._forward("verify", 0, [[row.token_ids[-1], *draft]], every=True)
        choice = sampling.choose(output, contexts)
        right = 0
        while right < len(draft) and choice.tokens[right] == draft[right]:
            right += 1
        # What only a wrong guess has led to may be no number, nor what is behind the text's end;
        # it must not stay where it is.
        numbers = choice.tokens.index(None) if None in choice.tokens else len(choice.tokens)
        cache.truncate(0, length + min(right + 1, numbers))
        if numbers < len(choice.tokens):
            cache.erase(0)
        self.pace.note_verified(kind, len(draft), right, seconds)
        for n, token_id in enumerate(choice.tokens[: right + 1]):
            if not row.request.parameters.greedy:
                row.draws.next()
            if not self._append(row, token_id, choice.notes[n] if choice.notes else None):
                break

    # Beam search: the rows of a request go on from one another.

    def _advance_beams(self, request: Request, beams: list[Row], output: StepOutput) -> None:
        live = self._live.get(request)
        if live is None or live.search is None:
            return
        if np.isnan(output.logsumexp).any():
            self._fail_request(request, FloatingPointError(sampling.NOT_NUMBERS), broken=True)
            return
        parents, tokens = beam_rows.choose(live.search, beams, output)
        if live.search.done:
            self._finish_beams(beams, live.search)
            return
        before = [(row.token_ids, row.seen, row.counts) for row in beams]
        for n, (row, parent, token_id) in enumerate(zip(beams, parents, tokens, strict=True)):
            token_ids, seen, counts = before[parent]
            row.token_ids, row.seen = list(token_ids), seen.copy()
            row.counts = None if counts is None else counts.copy()
            _take(row, token_id)
            if parent != n:
                self.slots.copy(beams[parent], row)

    def _finish_beams(self, beams: list[Row], search: BeamSearch) -> None:
        request = beams[0].request
        try:
            for row in beam_rows.finish(search, beams):
                if request.streamed:
                    self._tell(row)
        except Exception as error:
            self._fail_request(request, error)
            return
        for row in beams:
            self._retire(row)

    def _start(self) -> None:
        """Have waiting rows start: plan, then forward at most a chunk of their prompts."""
        if not self._starting.under_way:
            self._successors += [row for row in self._starting.plan() if not row.token_ids]
        chunk = self._starting.chunk()
        if chunk:
            scored = self._starting.scored is not None
            output, _ = self._forward("prefill", len(self.slots.rows), chunk, scored)
            only = self._starting.only
            if only is not None and np.isnan(output.logsumexp).any():
                # At once: were it given up before its end, what is no number would stay there.
                self._fail_request(only, FloatingPointError(sampling.NOT_NUMBERS), broken=True)
                return
            rows, of_rows = self._starting.take(output)
            self._begin(rows, of_rows)

    def _begin(self, rows: list[Row], output: StepOutput) -> None:
        """Give rows their first tokens; those that are to have none end."""
        going = [n for n, row in enumerate(rows) if row.request.max_length]
        if len(going) == len(rows):
            self._advance(rows, output)
            return
        for row in rows:
            if not row.request.max_length:
                row.finish_reason = "length"
                if row.request.streamed:
                    self._tell(row)
                self._retire(row)
        self._advance([rows[n] for n in going], output.take(going))

    # Ends.

    def _set_back(self, request: Request) -> None:
        """Have all running rows of a request wait again."""
        if self._starting.runs(request):
            self._starting.set_back()
        rows = [row for row in self.slots.rows if row.request is request]
        for row in rows:
            self.slots.remove(row)
        for group in [rows] if request.beams else [[row] for row in rows]:
            if group:
                group.sort(key=lambda row: row.index)
                self._admission.set_back(Start(request, group))

    def _fail_request(self, request: Request, error: Exception, broken: bool = False) -> None:
        """End one request with an error; `broken` if its keys and values are not numbers."""
        self._remove(request, broken)
        self._events.append(Failed(request, error))

    def _remove(self, request: Request, broken: bool = False) -> None:
        """Take all of a request away."""
        for row in [row for row in self.slots.rows if row.request is request]:
            self._admission.left(row)
            (self.slots.discard if broken else self.slots.remove)(row)
        self._end(request, broken)

    def _end(self, request: Request, broken: bool = False) -> None:
        self._starting.remove(request, broken)
        self._admission.remove(request)
        del self._live[request]

    def _forward(
        self, kind: str, slot: int, token_ids: Sequence[Sequence[int]], every: bool = False
    ) -> tuple[StepOutput, float]:
        """Run a step; return its output and how long it took."""
        rows = frozenset(row.request for row in self.slots.rows)
        self._served = self._starting.requests if kind == "prefill" else rows
        start = time.perf_counter()
        try:
            output = self._runtime.forward(slot, token_ids, every, kind != "prefill")
        finally:
            self._served = frozenset()
        seconds = time.perf_counter() - start
        for hook in list(self.hooks):
            try:
                hook(Forward(kind, [len(tokens) for tokens in token_ids], seconds))
            except Exception as error:
                logger.warning("a step hook is dropped, since it raised %r", error)
                self.hooks.remove(hook)
        return output, seconds


def _take(row: Row, token_id: int) -> None:
    """Append a token to a row: here and nowhere else."""
    row.token_ids.append(token_id)
    row.seen[token_id] = True
    row.last_token = time.monotonic()
    row.first_token = row.first_token or row.last_token
    if row.counts is not None:
        row.counts[token_id] += 1


def _append(row: Row, token_id: int) -> None:
    """Give a row its next token, and finish it if that decides its text."""
    reason = row.request.parameters.ends.get(token_id)
    if reason is not None and row.allowed() is None:  # else it spells the prompt's end
        row.finish_reason, row.end_token_id = reason, token_id
        return
    _take(row, token_id)
    if row.stops.feed(token_id):
        row.finish_reason = "stop"
    elif len(row.token_ids) == row.request.max_length:
        row.finish_reason = "length"


def _take_note(row: Row, note: sampling.Note) -> None:
    if note.log_probs is not None:
        row.log_probs.append(note.log_probs)
    if note.score is not None:
        row.scores.append(note.score)


def _own(error: Exception) -> Exception:
    """An error like this one: raised in several threads, one object would mix their tracebacks."""
    try:
        own = type(error)(*error.args)
    except Exception:  # its class is made in another way
        own = RuntimeError(str(error))
    own.__cause__ = error
    return own
