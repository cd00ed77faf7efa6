"""The options of one generation on the command line: every field of GenerationConfig."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from paddlenlp_codegen_task import checks
from paddlenlp_codegen_task.generation_config import EarlyStopping, GenerationConfig
from paddlenlp_codegen_task.truncation import PRESETS

PANEL = "Generation"
_TEXTS = {str, Sequence[str]}
_DEFAULTS = {
    field.name: field.default for field in fields(GenerationConfig) if field.default is not MISSING
}


def parameters(shown: Mapping[str, str]) -> list[inspect.Parameter]:
    """A keyword parameter of a command for each field, None where it is not given.

    Args:
        shown: what the help says of defaults that are a command's own.
    """
    found = []
    helps = descriptions(GenerationConfig)
    for name, hint in get_type_hints(GenerationConfig).items():
        kind, settings = _typed(name, hint)
        if get_origin(kind) is list:
            helps[name] = f"{helps.get(name, '')} May be given several times.".strip()
        shows = shown.get(name, _shown(_DEFAULTS[name], kind))
        found.append(
            _parameter(
                name, kind, option(name), helps.get(name, ""), show_default=shows, **settings
            )
        )
        if kind is bool or _is_turned_off(name, hint):
            # Not as typer's own "--x/--no-x": those take a column of their own from the help.
            hidden = _DEFAULTS[name] is False and name not in shown
            text = (
                f"Not {option(name)}." if kind is bool else f"As if there were no {option(name)}."
            )
            found.append(_parameter(f"no_{name}", bool, turned_off(name), text, hidden=hidden))
    return found


def collect(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of GenerationConfig that were given, of what a command was called with.

    Raises:
        typer.BadParameter: an option is given and turned off at once.
    """
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(GenerationConfig).items():
        value, kinds = values.get(name), _kinds(hint)
        if values.get(f"no_{name}"):
            if value:
                raise typer.BadParameter(
                    f"{option(name)} and {turned_off(name)} cannot both be given"
                )
            found[name] = False if kinds == {bool} else None
        elif value is not None and value != []:
            if kinds == {Mapping[int, float]}:
                value = dict(value)
            elif kinds == _TEXTS and len(value) == 1:  # one may be a preset's name
                value = value[0]
            found[name] = value
    return found


def option(name: str) -> str:
    """How a field is called on the command line."""
    return "--" + name.replace("_", "-")


def turned_off(name: str) -> str:
    """How the option is called that turns it off."""
    return "--no-" + name.replace("_", "-")


def descriptions(documented: type) -> dict[str, str]:
    """What a class' docstring says of each attribute, in the command line's words."""
    text = inspect.cleandoc(documented.__doc__ or "").partition("\nAttributes:\n")[2]
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \w)", "\n" + text):
        name, _, said = entry.strip().partition(": ")
        if name in _DEFAULTS:
            found[name] = _in_options(name, " ".join(said.split()))
    return found


def _in_options(name: str, said: str) -> str:
    """A field's description for whoever gives options: left out is what None is in Python."""
    if _DEFAULTS[name] is None or _DEFAULTS[name] == ():
        said = re.sub(r"\bNone(?: for|:) ", "left out: ", said)
    else:
        said = re.sub(r"\bNone keeps", f"{turned_off(name)} keeps", said)
    said = re.sub(r" \(https?://[^)]*\)", "", said).replace("`", "")
    several = ["batch_size", *(one for one in _DEFAULTS if "_" in one)]
    said = re.sub(rf"\b({'|'.join(several)})\b", lambda match: option(match[1]), said)
    said = said.replace("(True)", "(true)").replace("(False)", "(false)")
    return re.sub(r"(^|\. )([a-z])", lambda match: match[1] + match[2].upper(), said)


def _typed(name: str, hint: Any) -> tuple[Any, dict[str, Any]]:
    """What typer is to make of an option, and how."""
    kinds = _kinds(hint)
    if kinds == {bool}:
        return bool, {}
    if kinds in ({int}, {float}):
        [kind] = kinds
        return kind, {"metavar": "N" if kind is int else "NUMBER"}
    if kinds == _kinds(EarlyStopping):
        return str, {"parser": _early_stopping, "metavar": "VALUE"}
    if kinds == {Mapping[int, float]}:
        return list[str], {"parser": _bias, "metavar": "ID=BIAS"}
    if kinds == {Iterable[int]}:
        return list[int], {"metavar": "ID"}
    if kinds == _TEXTS:
        values = list(PRESETS) if name == "truncation" else []
        return list[str], {"metavar": "TEXT", "autocompletion": completing(values)}
    values = [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    if len(kinds) == 1 and values:
        return str, {"metavar": "NAME", "autocompletion": completing(values)}
    raise TypeError(f"the command line has no options such as {name}: {hint}")


def _kinds(hint: Any) -> set[Any]:
    """The types that a hint allows, beside None."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return set(parts) - {NoneType}


def _is_turned_off(name: str, hint: Any) -> bool:
    """Whether None is something else than the default, and nothing else says so."""
    return NoneType in get_args(hint) and _DEFAULTS[name] not in (None, ())


def _parameter(name: str, kind: Any, flag: str, said: str, **settings: Any) -> inspect.Parameter:
    settings = {"help": said, "show_default": False, "rich_help_panel": PANEL, **settings}
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, typer.Option(flag, **settings)],
    )


def completing(values: Sequence[str]) -> Callable[[str], list[str]]:
    """What a shell offers where an option's value is one of these."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


def _shown(default: Any, kind: Any) -> str | bool:
    """How the help shows a default; False for those that ask for nothing."""
    if default is None or default == ():
        return False
    if isinstance(default, bool):
        return ("yes" if default else "no") if kind is bool else str(default).lower()
    return repr(default) if isinstance(default, str) and "\n" in default else str(default)


def _early_stopping(text: str) -> bool | str:
    values: dict[str, bool | str] = {"true": True, "false": False, "never": "never"}
    if text.lower() not in values:
        raise typer.BadParameter(f"{checks.shown(text)} is not one of true, false, never")
    return values[text.lower()]


def _bias(text: str) -> tuple[int, float]:
    token_id, equals, bias = text.partition("=")
    try:
        if equals:
            return int(token_id), float(bias)
    except ValueError:
        pass
    raise typer.BadParameter(f"{checks.shown(text)} is no token's id and its bias, such as 50=-2.5")
