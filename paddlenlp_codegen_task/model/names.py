"""Names of the published CodeGen models, and of the files a checkpoint consists of."""

import difflib

from paddlenlp_codegen_task.checks import shown

SALESFORCE_MODELS = tuple(
    f"Salesforce/codegen-{size}-{data}"
    for size in ("350M", "2B", "6B", "16B")
    for data in ("nl", "multi", "mono")
)

# Their parameters, in millions.
PARAMETERS = {"350M": 357, "2B": 2779, "6B": 7064, "16B": 16032}

# The one that ships with the package.
BUILTIN = "builtin"

# What runs if no model is named.
DEFAULT_MODEL = "Salesforce/codegen-350M-mono"
# What Taskflow passes on then: the task knows by it that no model was asked for by name, and may
# run the built-in one instead.
UNNAMED = "default"

# PaddleNLP's server has CodeGen's configuration under the older name only.
CONFIG_FILES = ("config.json", "model_config.json")
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


def explain_unknown(name: str) -> str:
    """One line for a `name` that is none of SALESFORCE_MODELS: the nearest one, and other ways."""
    if "codegen2" in name.lower():
        return f"unknown model {shown(name)}: CodeGen2 is not supported yet"
    close = difflib.get_close_matches(name, SALESFORCE_MODELS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return (
        f"unknown model {shown(name)}: {hint}There is no folder of this name either. For a "
        "repository of the Hugging Face hub pass from_hf_hub=True"
    )
