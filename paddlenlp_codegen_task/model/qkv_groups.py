"""How many groups of rows a checkpoint's qkv_proj has: the one rule, as docs/models.md tells it.

CodeGen was trained on TPUs, each of which held some of the heads, and qkv_proj is stored as they
held it: a group of rows for each, ordered query, value, key. CodeGen of 2022 has 4 groups, two of
the CodeGen2 models have 8 (`mp_num` in the modeling code of either). The shapes are the same, so a
wrong number would give another model without a word.

The number is what `qkv_groups` says, given while loading or in config.json. Else config.json tells
by two signs: its sizes, where they are a published model's, and its head_dim, which CodeGen2's
models of 8 groups have there (128 or 256) and those of 4 groups have not; CTranslate2 goes by this
one alone (https://github.com/OpenNMT/CTranslate2, python/ctranslate2/converters/transformers.py).
Where both speak they must agree. That there is no head_dim says nothing if the file names code of
its own (auto_map), as every CodeGen2 model's does: then its sizes alone decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paddlenlp_codegen_task.checks import shown

# n_embd, n_layer and n_head of the published models.
_PUBLISHED = {
    (1024, 20, 16): 4,  # codegen-350M
    (2560, 32, 32): 4,  # codegen-2B
    (4096, 33, 16): 4,  # codegen-6B
    (6144, 34, 24): 4,  # codegen-16B and codegen2-16B
    (2048, 16, 16): 8,  # codegen2-1B
    (4096, 16, 16): 8,  # codegen2-3_7B
    (4096, 32, 16): 4,  # codegen2-7B
}
_HEAD_DIMS = (128, 256)
MOST_GROUPS = 2**12


def of(values: Mapping[str, Any], given: int | None = None) -> int:
    """The number of groups of a checkpoint of model_type "codegen".

    Args:
        values: the content of its config.json, whose n_embd, n_layer and n_head are integers.
        given: the number, if someone says so.

    Raises:
        ValueError: config.json has a head_dim that cannot be, or does not tell the number.
    """
    width, heads = values["n_embd"], values["n_head"]
    head_dim = values.get("head_dim")
    if head_dim is not None and (isinstance(head_dim, bool) or head_dim != width / heads):
        raise ValueError(
            f"config.json: head_dim must be n_embd / n_head ({width} / {heads}), "
            f"got {shown(head_dim)}"
        )
    if given is not None:
        return given
    if (stated := values.get("qkv_groups")) is not None:
        return stated  # type: ignore[no-any-return]  # CodeGenConfig looks at it
    by_size = _PUBLISHED.get((width, values["n_layer"], heads))
    if head_dim is None:
        by_key = None if values.get("auto_map") is not None else 4
    else:
        by_key = 8 if head_dim in _HEAD_DIMS else None
    signs = {one for one in (by_size, by_key) if one is not None}
    if (head_dim is not None and by_key is None) or len(signs) != 1:
        raise ValueError(
            "config.json does not tell whether qkv_proj is stored in 4 groups, as CodeGen's, or in "
            f"8, as that of two CodeGen2 models ({_signs(values)}): pass qkv_groups=4 or "
            "qkv_groups=8, or write one into config.json"
        )
    return signs.pop()


def _signs(values: Mapping[str, Any]) -> str:
    """What an error says of the signs that it has."""
    sizes = ", ".join(f"{name} {values[name]}" for name in ("n_embd", "n_layer", "n_head"))
    head_dim = values.get("head_dim")
    code = "" if values.get("auto_map") is None else ", code of its own"
    return f"{sizes}, {'no head_dim' if head_dim is None else f'head_dim {head_dim}'}{code}"
