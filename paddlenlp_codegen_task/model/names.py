"""Names of the published CodeGen models, and of the files a checkpoint consists of."""

import difflib

from paddlenlp_codegen_task.checks import shown

CODEGEN2_MODELS = tuple(f"Salesforce/codegen2-{size}_P" for size in ("1B", "3_7B", "7B", "16B"))
SALESFORCE_MODELS = (
    *(
        f"Salesforce/codegen-{size}-{data}"
        for size in ("350M", "2B", "6B", "16B")
        for data in ("nl", "multi", "mono")
    ),
    *CODEGEN2_MODELS,
)
# What the hub called CodeGen2's before, and still finds them by; caches may hold them so.
FORMER_NAMES = tuple(name.removesuffix("_P") for name in CODEGEN2_MODELS)
KNOWN_MODELS = (*SALESFORCE_MODELS, *FORMER_NAMES)

# CodeGen's parameters, in millions; and CodeGen2's.
PARAMETERS = {"350M": 357, "2B": 2779, "6B": 7064, "16B": 16032}
_CODEGEN2_PARAMETERS = dict(zip(CODEGEN2_MODELS, (1015, 3641, 6863, 16032), strict=True))

# The one that ships with the package.
BUILTIN = "builtin"

# What runs if no model is named.
DEFAULT_MODEL = "Salesforce/codegen-350M-mono"
# What Taskflow passes on then: the task knows by it that no model was asked for by name, and may
# run the built-in one instead.
UNNAMED = "default"

# PaddleNLP's server has CodeGen's configuration under the older name only.
CONFIG_FILES = ("config.json", "model_config.json")
GENERATION_FILE = "generation_config.json"
TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "tokenizer.json",
)
# The first of these that a source has is fetched, and no other.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "model_state.pdparams",
    "model_state.pdparams.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Of a LoRA adapter: peft's, and PaddleNLP's.
PEFT_CONFIG, LORA_CONFIG = "adapter_config.json", "lora_config.json"
ADAPTER_WEIGHTS = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "lora_model_state.pdparams",
)


def parameters(name: str) -> int:
    """How many parameters one of SALESFORCE_MODELS has, to the million."""
    millions = _CODEGEN2_PARAMETERS.get(name) or PARAMETERS[name.split("-")[-2]]
    return millions * 10**6


def all_names(name: str) -> tuple[str, ...]:
    """A model's name, and the other one that it has if it is one of CodeGen2's."""
    other = dict(zip(CODEGEN2_MODELS, FORMER_NAMES, strict=True))
    other |= {former: now for now, former in other.items()}
    return (name, other[name]) if name in other else (name,)


def explain_unknown(name: str) -> str:
    """One line for a `name` that is none of KNOWN_MODELS: the nearest one, and other ways."""
    if "codegen25" in name.lower() or "codegen2.5" in name.lower():
        return f"unknown model {shown(name)}: CodeGen2.5 is no CodeGen model, but a Llama"
    close = difflib.get_close_matches(name, SALESFORCE_MODELS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return (
        f"unknown model {shown(name)}: {hint}There is no folder of this name either. For a "
        "repository of the Hugging Face hub pass from_hf_hub=True"
    )
