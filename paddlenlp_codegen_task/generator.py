"""Text in, text out: CodeGenerator, over any runtime."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence as Prompts
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from paddlenlp_codegen_task.decoding import scheduler
from paddlenlp_codegen_task.decoding.sampling import Sampler
from paddlenlp_codegen_task.decoding.sequence import FinishReason, Sequence, new_sequence
from paddlenlp_codegen_task.decoding.stopping import StopChecker
from paddlenlp_codegen_task.generation_config import GenerationConfig, check_option_names
from paddlenlp_codegen_task.loading import LoadedModel, LoadOptions, load_export, load_model
from paddlenlp_codegen_task.model.config import CodeGenConfig
from paddlenlp_codegen_task.model.tokenizer import Tokenizer
from paddlenlp_codegen_task.truncation import Truncator

DEFAULT_BATCH_SIZE = 8


@dataclass(frozen=True)
class Completion:
    """One completion of a prompt.

    Attributes:
        text: what follows the prompt, truncated.
        token_ids: the tokens generated, those that truncation cut off included.
        finish_reason: "stop" (truncation matched), "eos" (end of text) or "length" (max_length).
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason


class CodeGenerator:
    """Completes code with a CodeGen model. Threads may share one: they take turns."""

    def __init__(self, model: LoadedModel, defaults: GenerationConfig, batch_size: int) -> None:
        """Wrap a loaded model; `from_pretrained` and `from_export` load one."""
        self._model = model
        self._defaults = defaults
        self._batch_size = batch_size
        self._lock = threading.Lock()

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
                static_mode, cuda_graph; batch_size (most sequences that run at once); and any
                field of GenerationConfig as the default of later calls.

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
        batch_size = _checked_batch_size(options.pop("batch_size", DEFAULT_BATCH_SIZE))
        where = {field.name for field in fields(LoadOptions)}
        load_options = LoadOptions(**{k: v for k, v in options.items() if k in where})
        defaults = GenerationConfig(**{k: v for k, v in options.items() if k not in where})
        return cls(load(path, load_options), defaults, batch_size)

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
        batch_size = _checked_batch_size(options.pop("batch_size", self._batch_size))
        config = self._defaults.with_options(options)
        texts = _checked_prompts(prompts)
        encoded = [self._encode(text, number, config) for number, text in enumerate(texts)]
        completions = self._run(encoded, config, batch_size)
        n = config.num_return_sequences
        return [completions[i : i + n] for i in range(0, len(completions), n)]

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

    def _run(
        self, prompts: list[list[int]], config: GenerationConfig, batch_size: int
    ) -> list[Completion]:
        """Complete prompts; the num_return_sequences completions of each follow one another."""
        eos_token_id, vocab_size = self.tokenizer.eos_token_id, self.config.vocab_size
        sampler = Sampler(config, eos_token_id, vocab_size)
        truncator = Truncator(config.truncation)
        n = config.num_return_sequences

        def start(number: int) -> Sequence:
            checker = StopChecker(self.tokenizer, truncator)
            prompt_ids, sample = prompts[number // n], number % n
            return new_sequence(number, prompt_ids, checker, vocab_size, config.seed, sample)

        def append(sequence: Sequence, token_id: int) -> None:
            sequence.append(token_id, eos_token_id, config.max_length)

        # Prompts of like length follow one another, so that they are prefilled together.
        order = sorted(range(n * len(prompts)), key=lambda number: len(prompts[number // n]))
        with self._lock:
            finished = scheduler.run(
                self._model.runtime,
                map(start, order),
                min(batch_size, len(order)),
                sampler.choose,
                append,
            )
            try:
                completions = {one.number: _completion(one) for one in finished}
            except FloatingPointError:
                self._model.runtime.clear()  # what is not a number would spread to later calls
                raise
        return [completions[number] for number in range(len(order))]


def option_names() -> list[str]:
    """Every option of `CodeGenerator.from_pretrained`."""
    return [
        *(one.name for one in fields(LoadOptions)),
        *GenerationConfig.field_names(),
        "batch_size",
    ]


def _checked_batch_size(batch_size: Any) -> int:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int):
        raise TypeError(f"batch_size must be an integer, got {batch_size!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return batch_size


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


def _completion(sequence: Sequence) -> Completion:
    assert sequence.finish_reason is not None, "the scheduler returns when all have finished"
    return Completion(sequence.stop_checker.text, tuple(sequence.token_ids), sequence.finish_reason)
