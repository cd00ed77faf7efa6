"""The Taskflow task: PaddleNLP's lifecycle over CodeGenerator."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import paddle
from paddlenlp.taskflow.task import Task

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.generator import CodeGenerator
from paddlenlp_codegen_task.model.names import UNNAMED
from paddlenlp_codegen_task.option_names import check_option_names
from paddlenlp_codegen_task.options import Settings, option_names
from paddlenlp_codegen_task.requests import Completion, Infill
from paddlenlp_codegen_task.session import Session

usage = r"""
           from paddlenlp import Taskflow
           import paddlenlp_codegen_task

           codegen = Taskflow("code_generation")
           codegen("def hello_world():")
           '''
           ['\n    print("Hello world")']
           '''

           # Several prompts of any lengths, one text each; options at construction or per call
           codegen(["def add(a, b):", "x ="], max_length=64, decode_strategy="greedy_search")

           # The text as it is generated
           for piece in codegen.task_instance.stream("def fibonacci(n):"):
               print(piece, end="", flush=True)

           # A local checkpoint (Paddle, safetensors or PyTorch)
           codegen = Taskflow("code_generation", task_path="./my_checkpoint")

           # A deployed export: copy the folder that codegen.task_path() names
           codegen = Taskflow("code_generation", task_path="./exported", is_static_model=True)
         """

# Keyword arguments that Taskflow adds by itself, and users' ones that PaddleNLP's Task takes.
_ADDED = ("task_class", "task_flag", "priority_path")
_OF_TASK = ("device_id", "task_path", "is_static_model", "from_hf_hub")


class CodeGenerationTask(Task):  # type: ignore[misc]
    """Completes code with CodeGen.

    Args:
        task: "code_generation".
        model: one of the registered models.
        kwargs: task_path, is_static_model, from_hf_hub and device_id as in every Taskflow task,
            and the options of `CodeGenerator.from_pretrained`, which are the defaults of calls.
    """

    def __init__(self, task: str, model: str, **kwargs: Any) -> None:
        # None, the default of both, means the same as leaving them out; Task takes it for a path.
        unset = [name for name in ("task_path", "home_path") if kwargs.get(name, "") is None]
        kwargs = {name: value for name, value in kwargs.items() if name not in unset}
        if "task_path" in kwargs:
            if model != UNNAMED:
                raise ValueError(f"pass model or task_path, not both: got {model!r} and a folder")
            checks.path("task_path", kwargs["task_path"], "a folder's path or a repository's name")
        options = {k: v for k, v in kwargs.items() if k not in (*_ADDED, *_OF_TASK)}
        check_option_names(options, [*option_names(), *_OF_TASK])
        _check_texts_alone(options)
        Settings.of(options)  # before Task makes paths of them
        for name in ("is_static_model", "from_hf_hub"):
            kwargs[name] = checks.boolean(name, kwargs.get(name, False))
        is_static_model = kwargs.pop("is_static_model")
        device = _device(kwargs.get("device_id", 0), options.get("device"))
        # Task would look for one *.pdmodel or *.json file, and an export has several of the latter.
        super().__init__(task=task, model=model, **kwargs)
        self._task_path: str
        self.is_static_model = is_static_model
        if is_static_model and not self._custom_model:
            raise ValueError("is_static_model=True needs task_path, the folder of an export")
        self._usage = usage
        self._options = {**options, "device": device}
        self._construct_model(model)
        self._construct_tokenizer(model)
        self._construct_input_spec()

    def _construct_model(self, model: str) -> None:
        """Load the model, exporting it to a static graph the first time."""
        options = {**self._options, "home_path": self._home_path}
        if self.is_static_model:
            self._generator = CodeGenerator.from_export(
                self._task_path, from_hf_hub=self.from_hf_hub, **options
            )
        elif self._custom_model:
            self._generator = CodeGenerator.from_pretrained(
                self._task_path, from_hf_hub=self.from_hf_hub, **options
            )
        else:
            self._generator = CodeGenerator.from_pretrained(
                None if model == UNNAMED else model, from_hf_hub=self.from_hf_hub, **options
            )
        self.model = self._generator.name
        self._task_path = str(self._generator.folder)

    def _construct_tokenizer(self, model: str) -> None:
        """Take the tokenizer that belongs to the model."""
        self._tokenizer = self._generator.tokenizer

    def _construct_input_spec(self) -> None:
        """Describe the inputs of the static graph."""
        self._input_spec = [
            paddle.static.InputSpec(shape, dtype, name)
            for name, shape, dtype in self._generator.inputs
        ]

    def _preprocess(self, inputs: tuple[Any, ...]) -> dict[str, Any]:
        """Take what the task was called with: one prompt, or one list of prompts."""
        if len(inputs) != 1:
            raise TypeError(f"pass one prompt or one list of prompts, got {len(inputs)} arguments")
        given = inputs[0]
        if isinstance(given, (list, tuple)):
            return {"text": [_infill(one, n) for n, one in enumerate(given)]}
        return {"text": _infill(given, 0)}

    def _run_model(self, inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Complete the prompts."""
        _check_texts_alone(options)
        inputs["completions"] = self._generator.generate(inputs["text"], **options)
        return inputs

    def _postprocess(self, inputs: dict[str, Any]) -> Any:
        """One text a prompt, in order; a list of texts if several sequences were asked for.

        With output_scores, (texts, scores) as PaddleNLP's task gives them: a list of the scores of
        each prompt's completions.
        """
        completions: list[list[Completion]] = inputs["completions"]
        texts: list[Any] = [[one.text for one in of_prompt] for of_prompt in completions]
        if all(len(of_prompt) == 1 for of_prompt in texts):
            texts = [of_prompt[0] for of_prompt in texts]
        scores = [[one.score for one in of_prompt] for of_prompt in completions]
        return texts if scores[0][0] is None else (texts, scores)

    def stream(self, prompt: str, **options: Any) -> Generator[str, None, Completion]:
        """Complete one prompt and yield the text piece by piece: `CodeGenerator.stream`."""
        return self._generator.stream(prompt, **options)

    def session(self, path: str | os.PathLike[str] | None = None) -> Session:
        """Start a session of several turns, or go on with a saved one: `CodeGenerator.session`."""
        return self._generator.session(path)


def _infill(given: Any, number: int) -> Any:
    """A prompt that is given as {"prefix": ..., "suffix": ...}; any other as it is."""
    if not isinstance(given, dict):
        return given
    if given.keys() != {"prefix", "suffix"}:
        raise TypeError(
            f"prompt {number} must be a str, or a dict with prefix and suffix, got a dict with "
            f"{', '.join(checks.shown(name) for name in given) or 'nothing'}"
        )
    return Infill(given["prefix"], given["suffix"])


def _check_texts_alone(options: dict[str, Any]) -> None:
    """Refuse what a task's answer, texts and scores, has no place for."""
    for name in ("logprobs", "prompt_logprobs"):
        if options.get(name) is not None:
            raise ValueError(
                f"{name} has no effect with Taskflow, whose answers are texts: use CodeGenerator, "
                "or task_instance.stream"
            )


def _device(device_id: Any, device: Any) -> Any:
    """Where to run: what `device` says, or else where Taskflow has decided; -1 is the CPU."""
    device_id = checks.integer("device_id", device_id, -1)
    current = str(paddle.get_device())
    if device is not None:
        if device_id != 0:  # which Taskflow passes of itself
            raise ValueError(
                f"pass device or device_id, not both: got {checks.shown(device)} and {device_id}"
            )
        return device
    if device_id == -1 or not current.startswith("gpu"):
        if device_id > 0:
            raise ValueError(
                f"device_id ({device_id}) has no effect: this Paddle runs on {current!r}, and has "
                "no GPU; leave it out"
            )
        return "cpu"
    return current
