"""Gives commands options that several have."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from paddlenlp_codegen_task.cli import generation as of_generation
from paddlenlp_codegen_task.cli import loading as of_loading

_GROUPS: dict[str, Any] = {"loading": of_loading, "generation": of_generation}


def with_options(
    *,
    loading: bool = False,
    generation: bool = False,
    without: Collection[str] = (),
    shown: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Put options in the place of a command's parameters `loading` and `generation`.

    The command is then called with a dict for each: those options that were given, by the names
    that Python has for them.

    Args:
        loading: whether those of loading, which `loading.load` takes.
        generation: whether those of generating, which are fields of GenerationConfig.
        without: options of these that the command does not have.
        shown: what the help says of defaults that are the command's own.
    """
    wanted = {"loading": loading, "generation": generation}
    groups = {name: _GROUPS[name] for name in wanted if wanted[name]}

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        found: list[inspect.Parameter] = []
        for one in inspect.signature(command, eval_str=True).parameters.values():
            if one.name in groups:
                added = groups[one.name].parameters(shown or {})
                left_out = {*without, *(f"no_{name}" for name in without)}
                found += [option for option in added if option.name not in left_out]
            else:
                found.append(one.replace(kind=inspect.Parameter.KEYWORD_ONLY))

        @functools.wraps(command)
        def run(**values: Any) -> Any:
            own = {
                name: values[name]
                for name in inspect.signature(command).parameters
                if name in values
            }
            options = {name: group.collect(values) for name, group in groups.items()}
            return command(**{**own, **options})

        run.__signature__ = inspect.Signature(found)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in found}
        return run

    return decorate
