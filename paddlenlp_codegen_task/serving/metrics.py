"""What the server tells Prometheus; names as vLLM's, with a prefix of our own.

All labels have few values: the model's name, a reason, a preset, a route, a status.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from paddlenlp_codegen_task.decoding.events import Finished
from paddlenlp_codegen_task.decoding.request import Row
from paddlenlp_codegen_task.decoding.scheduler import Scheduler
from paddlenlp_codegen_task.requests import Call

PREFIX = "paddlenlp_codegen:"

# Seconds and tokens; vLLM's, as far as a model of this size comes.
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20)
_EACH = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1)
_WHOLE = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 60, 120, 240)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
_COUNT = (1, 2, 5, 10, 20, 50)

# As OpenAI's API tells of them.
_REASONS = {"stop": "stop", "eos": "stop", "length": "length"}


@dataclass
class Tally:
    """Tokens of what one HTTP request has come to."""

    prompt: int = 0
    cached: int = 0
    generated: int = 0


# Of the request that is being answered; whoever answers HTTP sets it.
tally: ContextVar[Tally | None] = ContextVar("tally", default=None)


@dataclass(frozen=True)
class Snapshot:
    """What a scheduler knows, between two steps."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    prefix_queries: int = 0
    prefix_hits: int = 0
    prefix_bytes: int = 0
    drafted: int = 0
    accepted: int = 0

    @classmethod
    def of(cls, scheduler: Scheduler) -> Snapshot:
        """Look at a scheduler, in its thread."""
        slots, pace = scheduler.slots, scheduler.pace
        cache = slots.prefix_cache
        return cls(
            slots.used,
            scheduler.waiting,
            slots.usage,
            cache.asked if cache else 0,
            cache.found if cache else 0,
            cache.bytes if cache else 0,
            pace.drafted,
            pace.accepted,
        )


class Metrics:
    """Counts what requests come to, for one server.

    Attributes:
        registry: everything that is counted.
    """

    def __init__(self, model: str) -> None:
        """Count for a server of this model."""
        self.registry = CollectorRegistry()
        self._model = model
        self._scheduler = _OfScheduler(model)
        self.registry.register(self._scheduler)
        ProcessCollector(registry=self.registry)
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.")
        self._generated = self._counter("generation_tokens", "Tokens generated.")
        self._ended = self._counter(
            "request_success", "Sequences that have ended, by why.", "finished_reason"
        )
        self._cut = self._counter(
            "truncations", "Sequences that a preset, or a stop string, has ended.", "truncation"
        )
        self._saved = self._counter(
            "truncation_saved_tokens", "Tokens not generated, since the text was decided."
        )
        self._answers = self._counter(
            "http_requests", "Requests by route and status.", "handler", "status"
        )
        times = {
            "time_to_first_token": ("From the request to its first token.", _FIRST),
            "time_per_output_token": ("Between two tokens of a sequence, on average.", _EACH),
            "e2e_request_latency": ("From a request to its end.", _WHOLE),
            "request_queue_time": ("Waiting for its turn.", _WHOLE),
            "request_prefill_time": ("From its turn to the first token.", _WHOLE),
            "request_decode_time": ("From the first token to the last.", _WHOLE),
        }
        self._times = {
            name: self._histogram(f"{name}_seconds", f"Seconds: {text}", buckets)
            for name, (text, buckets) in times.items()
        }
        self._sizes = {
            "prompt": self._histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS),
            "generation": self._histogram(
                "request_generation_tokens", "Tokens of a sequence.", _TOKENS
            ),
            "n": self._histogram("request_params_n", "Sequences of a prompt.", _COUNT),
            "max_tokens": self._histogram("request_params_max_tokens", "max_tokens.", _TOKENS),
        }

    def answered(self, handler: str, status: int) -> None:
        """Count an answer to HTTP; `handler` is a route, not what a client has written."""
        self._answers.labels(self._model, handler, str(status)).inc()

    def begin(self, call: Call, prompts: int) -> Watch:
        """Follow what is submitted now."""
        return Watch(self, call, prompts)

    def look(self, snapshot: Snapshot) -> None:
        """Tell of the scheduler as it was at this time."""
        self._scheduler.snapshot = snapshot

    def finished(self, call: Call, event: Finished, arrived: float) -> None:
        """Count a prompt whose rows have all ended."""
        prompt, config = len(event.request.prompt_ids), call.config
        self._prompt_tokens.labels(self._model).inc(prompt)
        self._observe(self._sizes["prompt"], prompt)
        self._observe(self._sizes["n"], config.num_return_sequences)
        self._observe(self._sizes["max_tokens"], config.max_length)
        self._observe(self._times["e2e_request_latency"], time.monotonic() - arrived)
        self._observe(self._times["request_queue_time"], event.rows[0].begun - arrived)
        begun = [row.first_token for row in event.rows if row.first_token]
        if begun:
            self._observe(self._times["time_to_first_token"], min(begun) - arrived)
        for row in event.rows:
            self._row(call, row)

    def gone(self, rows: int, reason: str) -> None:
        """Count sequences that did not come to their end: "abort", "timeout" or "error"."""
        self._ended.labels(self._model, reason).inc(rows)

    def _row(self, call: Call, row: Row) -> None:
        count = len(row.token_ids)
        self._generated.labels(self._model).inc(count)
        self._observe(self._sizes["generation"], count)
        if row.finish_reason is not None:
            self._ended.labels(self._model, _REASONS[row.finish_reason]).inc()
        if row.finish_reason == "stop":
            preset = call.config.truncation
            label = preset if isinstance(preset, str) else "none"
            self._cut.labels(self._model, label).inc()
            self._saved.labels(self._model).inc(row.request.max_length - count)
        if row.first_token:
            decoding = row.last_token - row.first_token
            self._observe(self._times["request_prefill_time"], row.first_token - row.begun)
            self._observe(self._times["request_decode_time"], decoding)
            if count > 1:
                self._observe(self._times["time_per_output_token"], decoding / (count - 1))

    def _observe(self, histogram: Histogram, value: float) -> None:
        histogram.labels(self._model).observe(max(value, 0.0))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        found = Counter(PREFIX + name, text, ("model_name", *labels), registry=self.registry)
        if not labels:
            found.labels(self._model)  # a counter is there from the beginning
        return found

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        found = Histogram(
            PREFIX + name, text, ("model_name",), registry=self.registry, buckets=buckets
        )
        found.labels(self._model)
        return found


class Watch:
    """Follows the requests of one call."""

    def __init__(self, metrics: Metrics, call: Call, prompts: int) -> None:
        """They arrive now."""
        self._metrics, self._call = metrics, call
        self._left = prompts * call.samples
        self._arrived = time.monotonic()
        self._tally = tally.get()

    def finished(self, event: Finished) -> None:
        """All rows of a prompt have ended."""
        self._left -= len(event.rows)
        self._metrics.finished(self._call, event, self._arrived)
        if self._tally is not None:
            self._tally.prompt += len(event.request.prompt_ids)
            self._tally.cached += event.rows[0].cached_tokens
            self._tally.generated += sum(len(row.token_ids) for row in event.rows)

    def end(self, reason: str) -> None:
        """Nothing more comes; what has not ended is gone, for this reason."""
        if self._left:
            self._metrics.gone(self._left, reason)


class _OfScheduler(Collector):
    """What a scheduler knows, as metrics."""

    def __init__(self, model: str) -> None:
        self.snapshot = Snapshot()
        self._model = model

    def collect(self) -> Iterable[Metric]:
        """The metrics."""
        now = self.snapshot
        gauges: dict[str, tuple[str, float]] = {
            "num_requests_running": ("Sequences that run.", now.running),
            "num_requests_waiting": ("Requests that wait for their turn.", now.waiting),
            "kv_cache_usage_perc": ("Share of the KV cache's budget in use, 0 to 1.", now.kv_usage),
            "prefix_cache_bytes": ("Bytes that the prefix cache takes.", now.prefix_bytes),
        }
        for name, (text, value) in gauges.items():
            gauge = GaugeMetricFamily(PREFIX + name, text, labels=["model_name"])
            gauge.add_metric([self._model], value)
            yield gauge
        counters = {
            "prefix_cache_queries": ("Tokens asked of the prefix cache.", now.prefix_queries),
            "prefix_cache_hits": ("Tokens that it had.", now.prefix_hits),
            "spec_decode_num_draft_tokens": ("Tokens guessed.", now.drafted),
            "spec_decode_num_accepted_tokens": ("Tokens guessed right.", now.accepted),
        }
        for name, (text, count) in counters.items():
            counter = CounterMetricFamily(PREFIX + name, text, labels=["model_name"])
            counter.add_metric([self._model], count)
            yield counter
