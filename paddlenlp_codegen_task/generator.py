"""Text in, text out: CodeGenerator, over any runtime."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator
from collections.abc import Sequence as Prompts
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from paddlenlp_codegen_task.calls import (
    Call,
    Completion,
    PromptTooLong,
    checked_progress,
    checked_prompts,
    checked_size,
    completions,
)
from paddlenlp_codegen_task.decoding.beams import BeamSampler
from paddlenlp_codegen_task.decoding.prefix_cache import PrefixCache
from paddlenlp_codegen_task.decoding.sampling import Sampler
from paddlenlp_codegen_task.decoding.scheduler import Job, Scheduler
from paddlenlp_codegen_task.decoding.sequence import (
    Advancer,
    Sequence,
    random_generator,
    seen_tokens,
)
from paddlenlp_codegen_task.decoding.shared import SharedScheduler
from paddlenlp_codegen_task.decoding.speculation import Drafter, DraftModel, FirstOf, PromptLookup
from paddlenlp_codegen_task.decoding.stopping import StopChecker
from paddlenlp_codegen_task.generation_config import GenerationConfig, check_option_names
from paddlenlp_codegen_task.loading import LoadedModel, LoadOptions, load_export, load_model
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.tokenizer import Tokenizer
from paddlenlp_codegen_task.session import Session, read_turns
from paddlenlp_codegen_task.truncation import Truncator

DEFAULT_BATCH_SIZE = 8
SESSION_CACHE_BYTES = 1 << 30  # of the prefix cache that a session turns on if there is none


class CodeGenerator:
    """Completes code with a CodeGen model. Threads may share one: what they ask runs together."""

    def __init__(
        self,
        model: LoadedModel,
        defaults: GenerationConfig,
        batch_size: int,
        prefix_cache_bytes: int = 0,
        draft_model: LoadedModel | None = None,
    ) -> None:
        """Wrap a loaded model; `from_pretrained` and `from_export` load one."""
        self._model = model
        self._defaults = defaults
        self._batch_size = batch_size
        if draft_model is not None:
            _check_vocabulary(draft_model, model)
        self._draft_model = draft_model
        self._drafter = DraftModel(draft_model.runtime) if draft_model else None
        cache = PrefixCache(prefix_cache_bytes) if prefix_cache_bytes else None
        self._scheduler = Scheduler(model.runtime, cache, batch_size)
        self._shared = SharedScheduler(self._scheduler)

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
                begins like one prefills only the rest; 0 for none); draft_model (name or folder
                of a smaller model with the same vocabulary, which guesses what one sequence that
                runs alone goes on with: the speed changes, not the text); and any field of
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
        batch_size = checked_size("batch_size", options.pop("batch_size", DEFAULT_BATCH_SIZE), 1)
        cache_bytes = checked_size("prefix_cache_bytes", options.pop("prefix_cache_bytes", 0), 0)
        draft = options.pop("draft_model", None)
        if draft is not None and not (isinstance(draft, (str, os.PathLike)) and os.fspath(draft)):
            raise TypeError(f"draft_model must be a model's name or a folder, got {draft!r}")
        where = {field.name for field in fields(LoadOptions)}
        load_options = LoadOptions(**{k: v for k, v in options.items() if k in where})
        defaults = GenerationConfig(**{k: v for k, v in options.items() if k not in where})
        draft_model = load_model(draft, load_options) if draft is not None else None
        return cls(load(path, load_options), defaults, batch_size, cache_bytes, draft_model)

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
            **options: fields of GenerationConfig, and batch_size, for this call; progress, whether
                to show a bar with the tokens a second: None for one if there are more prompts
                than run at once and standard error is a terminal.

        Returns:
            For each prompt, in order, its num_return_sequences completions.

        Raises:
            TypeError: an option is unknown, or a prompt is not a string.
            ValueError: an option or a prompt is not possible; nothing has been generated then.
        """
        known = [*GenerationConfig.field_names(), "batch_size", "progress"]
        check_option_names(options, known)
        options = dict(options)
        progress = checked_progress(options.pop("progress", None))
        batch_size = checked_size("batch_size", options.pop("batch_size", self._batch_size), 1)
        call = self._checked(prompts, options)
        samples, beams = call.samples, call.beams
        # Prompts of like length follow one another, so that they are prefilled together.
        order = sorted(range(len(call.texts)), key=lambda number: len(call.prompts[number]))
        sequences = (one for number in order for one in self._sequences(call, number))
        size = min(max(batch_size, beams), samples * len(order))
        job = Job(sequences, size, together=beams)
        self._run(job, samples * len(order), progress)
        finished = sorted(job.finished, key=lambda one: one.number)
        return [
            completions(finished[at : at + samples], call.config)
            for at in range(0, len(finished), samples)
        ]

    def stream(self, prompt: str, **options: Any) -> Generator[str, None, Completion]:
        """Complete one prompt, and yield the text piece by piece as soon as it is certain.

        The pieces joined are the text that `generate` gives: none of it is taken back, by
        truncation or otherwise, and no piece ends within a character. Closing the iterator frees
        its slot at once. Other calls may be made meanwhile, from this thread too.

        Args:
            prompt: what to complete.
            **options: fields of GenerationConfig for this call; they must ask for one completion.

        Returns:
            A generator of the pieces; its own value, which `yield from` gives and StopIteration
            holds, is the Completion.

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
        return self._pieces(sequence, call.config)

    def _pieces(
        self, sequence: Sequence, config: GenerationConfig
    ) -> Generator[str, None, Completion]:
        """Run a sequence, yield its text as it is settled, and return its completion."""
        shown, checker = 0, sequence.stop_checker
        for _ in self._shared.steps(Job([sequence], 1)):
            text = checker.settled if sequence.finish_reason is None else checker.text
            if len(text) > shown:
                yield text[shown:]
                shown = len(text)
        if len(checker.text) > shown:  # other calls' steps have brought it to its end
            yield checker.text[shown:]
        return completions([sequence], config)[0]

    def _run(self, job: Job, total: int, progress: bool | None) -> None:
        """Run a job to its end, with a bar on the way if one is wanted."""
        if progress is False or (progress is None and total <= job.batch_size):
            for _ in self._shared.steps(job):
                pass
            return
        from tqdm import tqdm  # a bar is rare, and its import is not free

        start, shown, tokens = time.perf_counter(), 0, 0
        disable = None if progress is None else False  # None: unless it is a terminal
        with tqdm(total=total, unit="sequence", disable=disable) as bar:
            for _ in self._shared.steps(job):
                new = job.finished[shown:]
                if new:
                    shown, tokens = shown + len(new), tokens + sum(len(o.token_ids) for o in new)
                    rate = tokens / (time.perf_counter() - start)
                    bar.set_postfix_str(f"{rate:.0f} tokens/s", refresh=False)
                    bar.update(len(new))

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
        with self._shared.holding():
            if self._scheduler.prefix_cache is None:
                self._scheduler.prefix_cache = PrefixCache(SESSION_CACHE_BYTES)

        def complete(prompt: str, **options: Any) -> str:
            one = {"num_return_sequences": 1, "best_of": None}  # whatever the generator's defaults
            return "".join(self.stream(prompt, **{**one, **options}))

        return Session(complete, model, turns)

    def close(self) -> None:
        """Free the model and its buffers; what still runs ends with a RuntimeError."""
        self._shared.close("this generator is closed")
        with self._shared.holding():
            if self._scheduler.prefix_cache is not None:
                self._scheduler.prefix_cache.clear()
            self._model.runtime.close()
            if self._draft_model is not None:
                self._draft_model.runtime.close()

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
        raise PromptTooLong(number, len(token_ids), config.max_length, room, context)

    def _checked(self, prompts: str | Prompts[str], options: dict[str, Any]) -> Call:
        """Check what is asked for, and encode the prompts."""
        config = self._defaults.with_options(options)
        texts = checked_prompts(prompts)
        if config.decode_strategy == "beam_search" and 2 * config.num_beams > self._vocab_size:
            raise ValueError(
                f"num_beams must be at most half of the vocabulary, got {config.num_beams}"
            )
        encoded = [self._encode(text, number, config) for number, text in enumerate(texts)]
        return Call(
            config,
            texts,
            encoded,
            Sampler(config, self.tokenizer.eos_token_id, self._vocab_size),
            Truncator(config.truncation, config.stop),
        )

    def _sequences(self, call: Call, number: int) -> Iterator[Sequence]:
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
                self._new_drafter(config) if call.beams == 1 else None,
            )

    def _new_drafter(self, config: GenerationConfig) -> Drafter | None:
        wanted = config.prompt_lookup
        if wanted is None:
            wanted = self._model.precision == "fp32"
        lookup = PromptLookup() if wanted else None
        if lookup and self._drafter:
            return FirstOf(lookup, self._drafter)
        return lookup or self._drafter

    @property
    def _vocab_size(self) -> int:
        return self.config.vocab_size


def option_names() -> list[str]:
    """Every option of `CodeGenerator.from_pretrained`."""
    return [
        *(one.name for one in fields(LoadOptions)),
        *GenerationConfig.field_names(),
        "batch_size",
        "prefix_cache_bytes",
        "draft_model",
    ]


def _check_vocabulary(draft_model: LoadedModel, model: LoadedModel) -> None:
    """Raise a ValueError unless tokens mean the same to both."""
    sizes = [one.runtime.config.vocab_size for one in (draft_model, model)]
    if sizes[0] == sizes[1]:
        ids = range(sizes[0])
        drafted, verified = (
            [one.tokenizer.token_bytes(token_id) for token_id in ids]
            for one in (draft_model, model)
        )
        if drafted == verified:
            return
    raise ValueError(
        f"draft_model: {draft_model.name} has another vocabulary than {model.name}: their tokens "
        "must be the same"
    )
