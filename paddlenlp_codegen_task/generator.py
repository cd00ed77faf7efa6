"""Text in, text out: CodeGenerator, over any runtime."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from collections.abc import Sequence as Prompts
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from paddlenlp_codegen_task.decoding.beams import BeamSampler
from paddlenlp_codegen_task.decoding.prefix_cache import PrefixCache
from paddlenlp_codegen_task.decoding.sampling import Sampler
from paddlenlp_codegen_task.decoding.scheduler import Job, Scheduler
from paddlenlp_codegen_task.decoding.sequence import (
    Advancer,
    FinishReason,
    Sequence,
    random_generator,
    seen_tokens,
)
from paddlenlp_codegen_task.decoding.speculation import PromptLookup
from paddlenlp_codegen_task.decoding.stopping import StopChecker
from paddlenlp_codegen_task.generation_config import GenerationConfig, check_option_names
from paddlenlp_codegen_task.loading import LoadedModel, LoadOptions, load_export, load_model
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.tokenizer import Tokenizer
from paddlenlp_codegen_task.session import Session, read_turns
from paddlenlp_codegen_task.truncation import Truncator

DEFAULT_BATCH_SIZE = 8
SESSION_CACHE_BYTES = 1 << 30  # of the prefix cache that a session turns on if there is none


@dataclass(frozen=True)
class Completion:
    """One completion of a prompt.

    Attributes:
        text: what follows the prompt, truncated.
        token_ids: the tokens generated, those that truncation cut off included.
        finish_reason: "stop" (truncation or stop matched), "eos" (end of text) or "length"
            (max_length).
        logprobs: for each of token_ids, with the option `logprobs`: token to log-probability, of
            the token itself (first) and of the likeliest.
        score: with the option `output_scores`, as PaddleNLP counts it.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[dict[int, float], ...] | None = None
    score: float | None = None


class CodeGenerator:
    """Completes code with a CodeGen model. Threads may share one: what they ask runs together."""

    def __init__(
        self,
        model: LoadedModel,
        defaults: GenerationConfig,
        batch_size: int,
        prefix_cache_bytes: int = 0,
    ) -> None:
        """Wrap a loaded model; `from_pretrained` and `from_export` load one."""
        self._model = model
        self._defaults = defaults
        self._batch_size = batch_size
        self._lock = threading.Lock()
        cache = PrefixCache(prefix_cache_bytes) if prefix_cache_bytes else None
        self._scheduler = Scheduler(model.runtime, cache)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike[str] | None = None, **options: Any
    ) -> CodeGenerator:
        """Load a model by name or from a folder, exporting it to a static graph the first time.

        Args:
            name_or_path: a model's name ("Salesforce/codegen-350M-mono"), a folder with a
                checkpoint, or "builtin". None: Salesforce/codegen-350M-mono if it is here or can
                be downloaded, else the built-in model, with a warning.
            **options: engine, precision, device, num_threads, home_path, from_hf_hub,
                static_mode, cuda_graph; batch_size (most sequences that run at once);
                prefix_cache_bytes (memory for the keys and values of earlier texts: a prompt that
                begins like one prefills only the rest; 0 for none); and any field of
                GenerationConfig as the default of later calls.

        Raises:
            TypeError: an option is unknown.
            ValueError: an option's value is not possible.
            OSError, ExportError: the model cannot be found, read or exported.
        """
        return cls._load(load_model, name_or_path, options)

    @classmethod
    def from_export(cls, folder: str | os.PathLike[str], **options: Any) -> CodeGenerator:
        """Load a deployed export (`folder` of a generator on another machine), without weights.

        Takes the options of `from_pretrained`.
        """
        return cls._load(load_export, folder, options)

    @classmethod
    def _load(cls, load: Any, path: Any, options: dict[str, Any]) -> CodeGenerator:
        check_option_names(options, option_names())
        batch_size = _checked_size("batch_size", options.pop("batch_size", DEFAULT_BATCH_SIZE), 1)
        cache_bytes = _checked_size("prefix_cache_bytes", options.pop("prefix_cache_bytes", 0), 0)
        where = {field.name for field in fields(LoadOptions)}
        load_options = LoadOptions(**{k: v for k, v in options.items() if k in where})
        defaults = GenerationConfig(**{k: v for k, v in options.items() if k not in where})
        return cls(load(path, load_options), defaults, batch_size, cache_bytes)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer: encode(text) -> ids, decode(ids) -> text."""
        return self._model.tokenizer

    @property
    def config(self) -> CodeGenConfig:
        """The model's sizes."""
        return self._model.runtime.config

    @property
    def name(self) -> str:
        """The name of the model that runs."""
        return self._model.name

    @property
    def inputs(self) -> list[tuple[str, list[int | None], str]]:
        """Name, shape (None where it varies) and dtype of the graph's inputs."""
        return self._model.runtime.inputs

    @property
    def folder(self) -> Path:
        """The export that runs: copy it to deploy it. Without a static graph, the checkpoint."""
        return self._model.folder

    def generate(self, prompts: str | Prompts[str], **options: Any) -> list[list[Completion]]:
        """Complete prompts of any lengths; each completes as it would alone.

        Args:
            prompts: one prompt or a list of them.
            **options: fields of GenerationConfig, and batch_size, for this call.

        Returns:
            For each prompt, in order, its num_return_sequences completions.

        Raises:
            TypeError: an option is unknown, or a prompt is not a string.
            ValueError: an option or a prompt is not possible; nothing has been generated then.
        """
        check_option_names(options, [*GenerationConfig.field_names(), "batch_size"])
        options = dict(options)
        batch_size = _checked_size("batch_size", options.pop("batch_size", self._batch_size), 1)
        call = self._checked(prompts, options)
        samples, beams = call.samples, call.beams
        # Prompts of like length follow one another, so that they are prefilled together.
        order = sorted(range(len(call.texts)), key=lambda number: len(call.prompts[number]))
        sequences = (one for number in order for one in self._sequences(call, number))
        size = min(max(batch_size, beams), samples * len(order))
        job = Job(sequences, size, together=beams)
        for _ in self._steps(job):
            pass
        finished = sorted(job.finished, key=lambda one: one.number)
        return [
            _completions(finished[at : at + samples], call.config)
            for at in range(0, len(finished), samples)
        ]

    def stream(self, prompt: str, **options: Any) -> Iterator[str]:
        """Complete one prompt, and yield the text piece by piece as soon as it is certain.

        The pieces joined are the text that `generate` gives: none of it is taken back, by
        truncation or otherwise, and no piece ends within a character. Closing the iterator frees
        its slot at once. Other calls may be made meanwhile, from this thread too.

        Args:
            prompt: what to complete.
            **options: fields of GenerationConfig for this call; they must ask for one completion.

        Raises:
            TypeError, ValueError: as `generate` does, when called.
        """
        check_option_names(options, GenerationConfig.field_names())
        if not isinstance(prompt, str):
            raise TypeError(f"prompt must be a str, got {type(prompt).__name__}")
        call = self._checked(prompt, options)
        if call.config.decode_strategy == "beam_search":
            raise ValueError("decode_strategy: a beam search's text is known at its end only")
        for name in ("num_return_sequences", "best_of"):
            if (getattr(call.config, name) or 1) > 1:
                raise ValueError(f"{name} must be 1 to stream, got {getattr(call.config, name)}")
        (sequence,) = self._sequences(call, 0)
        return self._pieces(sequence)

    def _pieces(self, sequence: Sequence) -> Iterator[str]:
        """Run a sequence, and yield its text as it is settled."""
        shown, checker = 0, sequence.stop_checker
        for _ in self._steps(Job([sequence], 1)):
            text = checker.settled if sequence.finish_reason is None else checker.text
            if len(text) > shown:
                yield text[shown:]
                shown = len(text)
        if len(checker.text) > shown:  # other calls' steps have brought it to its end
            yield checker.text[shown:]

    def _steps(self, job: Job) -> Iterator[None]:
        """Run a job step by step, beside other threads' jobs; give it up if this is closed."""
        with self._lock:
            self._scheduler.submit(job)
        try:
            while not job.done:
                with self._lock:
                    if not job.done:  # another thread's step may have ended it
                        self._scheduler.step()
                if job.error is not None:
                    raise job.error
                yield
        finally:
            job.cancelled = True
            # Whoever holds the lock is about to make a step, which frees the slots as well. It may
            # be this very thread, if the garbage collector closes an iterator.
            if self._lock.acquire(blocking=False):
                try:
                    self._scheduler.drop_cancelled()
                finally:
                    self._lock.release()

    def session(self, path: str | os.PathLike[str] | None = None) -> Session:
        """Start a session of several turns, or go on with one that was saved.

        Turns on the prefix cache, with SESSION_CACHE_BYTES, if there is none.

        Args:
            path: the file that `Session.save` wrote; None for a new session.

        Raises:
            OSError, ValueError: the file cannot be read, is none of a session, or is of one with
                another model.
        """
        model = {"name": self.name, "sizes": asdict(self.config)}
        turns = [] if path is None else read_turns(path, model)
        with self._lock:
            if self._scheduler.prefix_cache is None:
                self._scheduler.prefix_cache = PrefixCache(SESSION_CACHE_BYTES)

        def complete(prompt: str, **options: Any) -> str:
            return "".join(self.stream(prompt, **options))

        return Session(complete, model, turns)

    def close(self) -> None:
        """Free the model and its buffers; the generator cannot be used afterwards."""
        with self._lock:
            self._model.runtime.close()

    def __enter__(self) -> CodeGenerator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _encode(self, text: str, number: int, config: GenerationConfig) -> list[int]:
        """Tokens of a prompt, if they fit the context beside max_length new ones."""
        context = self.config.n_positions
        room = context - config.max_length
        if room < 1:
            raise ValueError(
                f"max_length must be below the model's context of {context} tokens, "
                f"got {config.max_length}"
            )
        try:
            token_ids = self.tokenizer.encode(text)
        except ValueError as error:
            raise ValueError(f"prompt {number}: {error}") from None
        if not token_ids:
            raise ValueError(f"prompt {number}: the tokenizer knows none of its characters")
        if len(token_ids) <= room:
            return token_ids
        if config.prompt_overflow == "truncate_left":
            return token_ids[-room:]
        raise ValueError(
            f"prompt {number} has {len(token_ids)} tokens, and with max_length "
            f"{config.max_length} only {room} fit the context of {context}: shorten it, lower "
            "max_length, or pass prompt_overflow='truncate_left'"
        )

    def _checked(self, prompts: str | Prompts[str], options: dict[str, Any]) -> _Call:
        """Check what is asked for, and encode the prompts."""
        config = self._defaults.with_options(options)
        texts = _checked_prompts(prompts)
        if config.decode_strategy == "beam_search" and 2 * config.num_beams > self._vocab_size:
            raise ValueError(
                f"num_beams must be at most half of the vocabulary, got {config.num_beams}"
            )
        encoded = [self._encode(text, number, config) for number, text in enumerate(texts)]
        return _Call(
            config,
            texts,
            encoded,
            Sampler(config, self.tokenizer.eos_token_id, self._vocab_size),
            Truncator(config.truncation, config.stop),
        )

    def _sequences(self, call: _Call, number: int) -> Iterator[Sequence]:
        """Make the sequences of a prompt; all share its list of tokens, and so its prefill."""
        config, prompt_ids = call.config, call.prompts[number]
        eos_token_id = self.tokenizer.eos_token_id
        sampler: Advancer = BeamSampler(config, eos_token_id) if call.beams > 1 else call.sampler
        for sample in range(call.samples):
            yield Sequence(
                call.samples * number + sample,
                prompt_ids,
                StopChecker(self.tokenizer, call.truncator, call.texts[number]),
                sampler,
                random_generator(config.seed, sample),
                seen_tokens(prompt_ids, self._vocab_size),
                eos_token_id,
                config.max_length,
                PromptLookup() if config.prompt_lookup and call.beams == 1 else None,
            )

    @property
    def _vocab_size(self) -> int:
        return self.config.vocab_size


@dataclass(frozen=True)
class _Call:
    """What one call asks for, checked."""

    config: GenerationConfig
    texts: list[str]
    prompts: list[list[int]]
    sampler: Sampler
    truncator: Truncator

    @property
    def beams(self) -> int:
        """Beams of each prompt; 1 without beam search, and then a beam search of one is greedy."""
        return self.config.num_beams if self.config.decode_strategy == "beam_search" else 1

    @property
    def samples(self) -> int:
        """Sequences of each prompt."""
        if self.config.decode_strategy == "beam_search":
            return self.beams
        return self.config.best_of or self.config.num_return_sequences


def option_names() -> list[str]:
    """Every option of `CodeGenerator.from_pretrained`."""
    return [
        *(one.name for one in fields(LoadOptions)),
        *GenerationConfig.field_names(),
        "batch_size",
        "prefix_cache_bytes",
    ]


def _checked_size(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def _checked_prompts(prompts: Any) -> list[str]:
    if isinstance(prompts, str):
        prompts = [prompts]
    if not isinstance(prompts, (list, tuple)):
        raise TypeError(f"prompts must be a str or a list of str, got {type(prompts).__name__}")
    if not prompts:
        raise ValueError("prompts must not be an empty list")
    for number, text in enumerate(prompts):
        if not isinstance(text, str):
            raise TypeError(f"prompt {number} must be a str, got {type(text).__name__}")
        if not text:
            raise ValueError(f"prompt {number} must not be empty")
    return list(prompts)


def _completions(samples: list[Sequence], config: GenerationConfig) -> list[Completion]:
    """The completions of one prompt, from all its samples in their order."""
    if config.best_of is not None:
        samples = sorted(samples, key=_mean_log_prob, reverse=True)
    return [_completion(one, config) for one in samples[: config.num_return_sequences]]


def _mean_log_prob(sequence: Sequence) -> float:
    return sum(log_prob for log_prob, _ in sequence.log_probs) / len(sequence.log_probs)


def _completion(sequence: Sequence, config: GenerationConfig) -> Completion:
    assert sequence.finish_reason is not None, "its job is done"
    token_ids = tuple(sequence.token_ids)
    logprobs = None
    if config.logprobs is not None:
        noted = zip(token_ids, sequence.log_probs, strict=False)  # end of text is not in token_ids
        logprobs = tuple({token_id: own, **top} for token_id, (own, top) in noted)
    score = sum(sequence.scores) / len(sequence.scores) if config.output_scores else None
    return Completion(
        sequence.stop_checker.text, token_ids, sequence.finish_reason, logprobs, score
    )
