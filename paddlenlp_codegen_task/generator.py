"""Text in, text out: CodeGenerator, over any runtime."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from collections.abc import Sequence as Prompts
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

from paddlenlp_codegen_task import checks, running
from paddlenlp_codegen_task.decoding.events import Forward
from paddlenlp_codegen_task.decoding.prefix_cache import PrefixCache
from paddlenlp_codegen_task.decoding.request import Drafter, Request
from paddlenlp_codegen_task.decoding.scheduler import Scheduler
from paddlenlp_codegen_task.decoding.speculation import DraftModel, PromptLookup
from paddlenlp_codegen_task.engine import Engine
from paddlenlp_codegen_task.generation_config import GenerationConfig
from paddlenlp_codegen_task.loading import (
    LoadedModel,
    check_vocabulary,
    load_draft,
    load_export,
    load_model,
)
from paddlenlp_codegen_task.memory import check_batch_size, check_prefix_cache
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.tokenizer import Tokenizer
from paddlenlp_codegen_task.options import (
    DEFAULT_BATCH_SIZE,
    CallOptions,
    GenerateOptions,
    GenerationOptions,
    LoadingOptions,
    Settings,
    check_call_options,
    checked_batch_size,
)
from paddlenlp_codegen_task.progress import Bar
from paddlenlp_codegen_task.requests import (
    Call,
    Completion,
    Infill,
    checked_progress,
    checked_prompts,
)
from paddlenlp_codegen_task.runtime import device
from paddlenlp_codegen_task.session import Session, read_turns

SESSION_CACHE_BYTES = 1 << 30  # of the prefix cache that a session turns on if there is none


class CodeGenerator:
    """Completes code with a CodeGen model.

    One thread of its own runs the model; any number of threads may ask, and what they ask runs
    together.

    Attributes:
        batch_size: most sequences that run at once.
        engine: what runs them.
    """

    def __init__(
        self,
        model: LoadedModel,
        defaults: GenerationConfig | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        prefix_cache_bytes: int = 0,
        draft_model: LoadedModel | None = None,
        kv_cache_bytes: int | None = None,
    ) -> None:
        """Take over loaded models, which are freed with this; `from_pretrained` loads one.

        Raises:
            TypeError: `model` is none.
            ValueError: the draft model has another vocabulary, or there is too little memory.
        """
        if not isinstance(model, LoadedModel):
            raise TypeError(
                f"CodeGenerator takes a loaded model, got {checks.shown(model)}: "
                "call CodeGenerator.from_pretrained, which loads one by name or folder"
            )
        self._model = model
        self._defaults = defaults or GenerationConfig()
        self.batch_size = batch_size
        if draft_model is not None:
            check_vocabulary(draft_model, model)
        self._drafter = DraftModel(draft_model.runtime) if draft_model else None
        if kv_cache_bytes is None:
            free = device.free_bytes(model.runtime.device_id)
            kv_cache_bytes = None if free is None else free // 2
        model.runtime.cache.max_bytes = kv_cache_bytes
        check_batch_size(model.runtime.cache, batch_size)
        cache = None
        if prefix_cache_bytes:
            check_prefix_cache(model.runtime.cache, prefix_cache_bytes)
            cache = PrefixCache(prefix_cache_bytes)
        scheduler = Scheduler(model.runtime, batch_size, cache)
        self.engine = Engine(scheduler, _freeing(model, draft_model, scheduler))
        self._origin: tuple[str, Any, dict[str, Any]] | None = None  # what loads it again

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str] | None = None,
        **options: Unpack[LoadingOptions],
    ) -> CodeGenerator:
        """Load a model by name or from a folder, exporting it to a static graph the first time.

        Args:
            name_or_path: a model's name ("Salesforce/codegen-350M-mono"), a folder with a
                checkpoint, or "builtin". None: Salesforce/codegen-350M-mono if it is here or can
                be downloaded, else the built-in model, with a warning.
            **options: engine, precision, kv_precision (that of keys and values: "int8", a quarter
                of their memory, or "auto", as the graph computes), device, num_threads,
                home_path, from_hf_hub, static_mode, cuda_graph; qkv_groups (in how many groups of
                rows the checkpoint stores qkv_proj, where its config.json does not tell); adapter
                (a LoRA adapter's folder, or repository of the Hugging Face hub: it is merged into
                the weights); batch_size (most sequences that run at once);
                kv_cache_bytes (most memory for keys and values of what runs: whoever does not fit
                waits; None for half of what is free on the device once the model is loaded);
                prefix_cache_bytes (memory for the keys and values of earlier texts: a prompt that
                begins like one prefills only the rest; 0 for none); draft_model (name or folder
                of a smaller model with the same vocabulary, which guesses what one sequence that
                runs alone goes on with: the speed changes, not the text); and any field of
                GenerationConfig as the default of later calls.

        Raises:
            TypeError: an option is unknown, or of the wrong type.
            ValueError: an option's value is not possible.
            OSError, ExportError: the model cannot be found, read or exported.
        """
        return cls._load("from_pretrained", load_model, name_or_path, {**options})

    @classmethod
    def from_export(
        cls, folder: str | os.PathLike[str], **options: Unpack[LoadingOptions]
    ) -> CodeGenerator:
        """Load a deployed export (`folder` of a generator on another machine), without weights.

        Takes the options of `from_pretrained`.
        """
        return cls._load("from_export", load_export, folder, {**options})

    @classmethod
    def _load(cls, method: str, load: Any, path: Any, options: dict[str, Any]) -> CodeGenerator:
        settings = Settings.of(options)
        draft, model = None, None
        try:
            if settings.draft_model is not None:
                draft = load_draft(settings.draft_model, settings.load)
            model = load(path, settings.load)
            generator = cls(
                model,
                settings.defaults,
                settings.batch_size,
                settings.prefix_cache_bytes,
                draft,
                settings.kv_cache_bytes,
            )
        except BaseException:
            for one in (draft, model):
                if one is not None:
                    one.runtime.close()
            raise
        generator._origin = method, path, options
        return generator

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it was loaded from: unpickling loads it again."""
        if self._origin is None:
            raise TypeError("a CodeGenerator that was not loaded by name or path has no pickle")
        return _load_again, (type(self), *self._origin)

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
    def precision(self) -> str:
        """What the model runs in, never "auto"."""
        return self._model.precision

    @property
    def kv_precision(self) -> str:
        """What keys and values are kept in: "fp32", "fp16" or "int8"."""
        dtypes = {name: dtype for name, _, dtype in self.inputs}
        return {"float32": "fp32", "float16": "fp16", "int8": "int8"}[dtypes["key_cache_0"]]

    @property
    def inputs(self) -> list[tuple[str, list[int | None], str]]:
        """Name, shape (None where it varies) and dtype of the graph's inputs."""
        return self._model.runtime.inputs

    @property
    def folder(self) -> Path:
        """The export that runs: copy it to deploy it. Without a static graph, the checkpoint."""
        return self._model.folder

    def generate(
        self,
        prompts: str | Infill | Prompts[str | Infill],
        config: GenerationConfig | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[list[Completion]]:
        """Complete prompts of any lengths; each completes as it would alone.

        Args:
            prompts: one prompt or a list of them; an `Infill` where the middle is wanted.
            config: the options, in place of the generator's defaults.
            **options: fields of GenerationConfig, and batch_size, for this call; progress, whether
                to show a bar with the tokens a second: None for one if there are more prompts
                than run at once and standard error is a terminal.

        Returns:
            For each prompt, in order, its num_return_sequences completions.

        Raises:
            TypeError: an option is unknown, or a prompt is not a string.
            ValueError: an option or a prompt is not possible; nothing has been generated then.
        """
        check_call_options(options, GenerateOptions)
        given: dict[str, Any] = {**options}
        progress = checked_progress(given.pop("progress", None))
        batch_size = self._batch_size_of(given)
        call_of = self._calls(config, given, batch_size)
        texts = checked_prompts(prompts)
        calls = [call_of(text) for text in texts]
        requests = [call.request(texts[number], number) for number, call in enumerate(calls)]
        # Prompts of like length follow one another, so that they are prefilled together.
        order = sorted(range(len(requests)), key=lambda number: len(requests[number].prompt_ids))
        if progress is None and calls[0].samples * len(texts) <= batch_size:
            progress = False
        found: list[list[Completion]] = [[] for _ in requests]
        with Bar(len(texts), progress) as bar:
            jobs = ((number, calls[number], requests[number]) for number in order)
            for number, finished in running.completed(self.engine, jobs, batch_size):
                found[number] = calls[number].completions(finished.request, finished.rows)
                bar.update(sum(len(row.token_ids) for row in finished.rows))
        return found

    def generate_as_completed(
        self,
        prompts: Iterable[str | Infill],
        config: GenerationConfig | None = None,
        **options: Unpack[CallOptions],
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Complete prompts and yield each when it is done, holding no more than what runs.

        Args:
            prompts: any number of them, taken from the iterable as there is room.
            config: the options, in place of the generator's defaults.
            **options: fields of GenerationConfig, and batch_size, for this call.

        Returns:
            An iterator of (number of the prompt, its num_return_sequences completions). Closing it
            gives up what runs.

        Raises:
            TypeError, ValueError: an option is not possible, when called; a prompt is not, when it
                is that prompt's turn.
        """
        check_call_options(options, CallOptions)
        given: dict[str, Any] = {**options}
        texts = checks.iterator(prompts)
        if texts is None:
            raise TypeError(f"prompts must be an iterable of str, got {checks.kind(prompts)}")
        batch_size = self._batch_size_of(given)
        call_of = self._calls(config, given, batch_size)

        def jobs() -> Iterator[tuple[tuple[int, Call], Call, Request]]:
            for number, text in enumerate(texts):
                call = call_of(text)
                yield (number, call), call, call.request(text, number)

        return (
            (number, call.completions(finished.request, finished.rows))
            for (number, call), finished in running.completed(self.engine, jobs(), batch_size)
        )

    def infill(
        self,
        prefix: str,
        suffix: str,
        config: GenerationConfig | None = None,
        **options: Unpack[GenerateOptions],
    ) -> list[Completion]:
        """Complete the middle of a text: `generate` of one `Infill`.

        Needs a model that was trained for it, as CodeGen2 was. Names of special tokens in the texts
        are text; without a truncation of its own, only the model ends the middle.

        Args:
            prefix: what stands before it.
            suffix: what stands after it; one of the two may be empty.
            config: the options, in place of the generator's defaults.
            **options: as of `generate`.

        Raises:
            ValueError: this model does not infill; or as `generate`.
            TypeError: as `generate`.
        """
        return self.generate([Infill(prefix, suffix)], config, **options)[0]

    def stream(
        self,
        prompt: str | Infill,
        config: GenerationConfig | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generator[Any, None, Any]:
        """Complete one prompt, and yield the text piece by piece as soon as it is certain.

        The pieces joined are the text that `generate` gives: none of it is taken back, by
        truncation or otherwise, and no piece ends within a character. A beam search knows its text
        at its end only. Nothing runs before the first piece is asked for. Closing the iterator, or
        dropping it, gives the completion up; if it is not read, its completion waits, and no other.

        Args:
            prompt: what to complete.
            config: the options, in place of the generator's defaults.
            **options: fields of GenerationConfig for this call.

        Returns:
            A generator of the pieces, or with num_return_sequences above 1 of (index of the
            completion, piece). Its own value, which `yield from` gives and StopIteration holds, is
            the Completion, or the list of them.

        Raises:
            TypeError, ValueError: as `generate` does, when called.
        """
        check_call_options(options, GenerationOptions)
        if checks.text(prompt) is None and not isinstance(prompt, Infill):
            raise TypeError(f"prompt must be a str, got {checks.kind(prompt)}")
        call = self._calls(config, {**options}, self.batch_size, streamed=True)(prompt)
        if (call.config.best_of or 1) > 1:
            raise ValueError(
                f"best_of must be 1 to stream, got {call.config.best_of}: samples are ranked when "
                "all have ended"
            )
        pieces = running.pieces(self.engine, call, call.request(prompt, 0))
        return pieces if call.config.num_return_sequences > 1 else running.of_one(pieces)

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
        self.engine.run(_keep_prefixes)

        def complete(prompt: str, **options: Unpack[GenerationOptions]) -> str:
            for name in _NOT_OF_TURNS:
                if name in options:
                    raise TypeError(f"{name}: a turn is one text; call generate or stream for it")
            options.update({"num_return_sequences": 1, "best_of": None})
            return "".join(self.stream(prompt, **options))

        return Session(complete, model, turns)

    def call(
        self,
        config: GenerationConfig | None = None,
        streamed: bool = False,
        infill: bool = False,
        **options: Unpack[GenerationOptions],
    ) -> Call:
        """Check options, for who makes requests of them and gives those to the engine itself.

        Args:
            config: the options, in place of the generator's defaults.
            streamed: whether the engine is to tell of text as soon as it is settled.
            infill: whether its prompts are `Infill`s.
            **options: fields of GenerationConfig.
        """
        check_call_options(options, GenerationOptions)
        return self._call(config, {**options}, self.batch_size, streamed, infill)

    def add_step_hook(self, hook: Callable[[Forward], None]) -> None:
        """Have a function called after each step of the model, in the thread that makes the steps.

        For measuring: what it takes is time in which nothing runs. A hook that raises is dropped.
        """
        self.engine.run(lambda scheduler: scheduler.hooks.append(hook))

    def remove_step_hook(self, hook: Callable[[Forward], None]) -> None:
        """Take a hook away that `add_step_hook` added."""

        def remove(scheduler: Scheduler) -> None:
            if hook in scheduler.hooks:
                scheduler.hooks.remove(hook)

        self.engine.run(remove)

    def close(self) -> None:
        """Free the model and its buffers; what still runs ends with a RuntimeError.

        May be called from anywhere, at any time and more than once. Waits for the step that runs,
        a few seconds at most.
        """
        self.engine.close("this generator is closed")

    def __enter__(self) -> CodeGenerator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(
        self,
        config: GenerationConfig | None,
        options: dict[str, Any],
        batch_size: int,
        streamed: bool = False,
        infill: bool = False,
    ) -> Call:
        """What a call asks for, checked."""
        if config is not None and not isinstance(config, GenerationConfig):
            raise TypeError(f"config must be a GenerationConfig, got {checks.kind(config)}")
        wanted = (config or self._defaults).with_options(options)
        return Call(
            self._model, wanted, batch_size, lambda: self._new_drafters(wanted), streamed, infill
        )

    def _calls(
        self,
        config: GenerationConfig | None,
        options: dict[str, Any],
        batch_size: int,
        streamed: bool = False,
    ) -> Callable[[Any], Call]:
        """Check options now; what finds a prompt's call, with one `Batch` for all of them."""
        found = {False: self._call(config, options, batch_size, streamed)}

        def call_of(prompt: Any) -> Call:
            infill = isinstance(prompt, Infill)
            if infill not in found:
                found[infill] = self._call(config, options, batch_size, streamed, infill)
                found[infill].batch = found[False].batch
            return found[infill]

        return call_of

    def _batch_size_of(self, options: dict[str, Any]) -> int:
        """Take the option batch_size out of a call's options."""
        return checked_batch_size(options.pop("batch_size", self.batch_size))

    def _new_drafters(self, config: GenerationConfig) -> list[Drafter]:
        wanted = config.prompt_lookup
        if wanted is None:
            wanted = (self.precision, self.kv_precision) == ("fp32", "fp32")
        drafters: list[Drafter] = [PromptLookup()] if wanted else []
        return drafters if self._drafter is None else [*drafters, self._drafter]


# What a session's turn, the text alone, has no place for.
_NOT_OF_TURNS = ("num_return_sequences", "best_of", "logprobs", "prompt_logprobs", "output_scores")


def _keep_prefixes(scheduler: Scheduler) -> None:
    if scheduler.slots.prefix_cache is None:
        scheduler.slots.prefix_cache = PrefixCache(SESSION_CACHE_BYTES)


def _freeing(
    model: LoadedModel, draft_model: LoadedModel | None, scheduler: Scheduler
) -> Callable[[], None]:
    """What gives everything back; it holds no generator, whose end may bring it about."""

    def free() -> None:
        if scheduler.slots.prefix_cache is not None:
            scheduler.slots.prefix_cache.clear()
        model.runtime.close()
        if draft_model is not None:
            draft_model.runtime.close()

    return free


def _load_again(cls: type[CodeGenerator], method: str, path: Any, options: Any) -> CodeGenerator:
    generator: CodeGenerator = getattr(cls, method)(path, **options)
    return generator
