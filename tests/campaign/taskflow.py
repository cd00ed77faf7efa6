"""Random sets of hostile values for Taskflow's keywords, and those of its calls."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from .hostile_values import ANYTHING, GENERATION, LOADING, draw_value, evaluated
from .models import write_model
from .options import judged, prepare_paths
from .outcomes import Outcome, check

FLOOR = 1000
LIMIT = 10.0

_OF_TASKFLOW = ["device_id", "is_static_model", "task_path", "from_hf_hub", "home_path"]
_DEVICES = ["-1", "0", "1", "'x'", "3", "True", "None", "-2", "2**64", "[0]"]


def draw(random: Random) -> dict[str, Any]:
    """Keywords of Taskflow and of one call, as expressions."""
    names = [*GENERATION, *LOADING, *_OF_TASKFLOW * 4]
    options = {}
    for name in sorted({random.choice(names) for _ in range(random.randrange(4))}):
        options[name] = draw_value(random, name)
        if name == "device_id":
            options[name] = random.choice(_DEVICES)
    chosen = {random.choice(GENERATION) for _ in range(random.randrange(3))}
    call = {name: draw_value(random, name) for name in sorted(chosen - options.keys())}
    odd = random.randrange(4) == 0
    prompt = random.choice(ANYTHING) if odd else "'def f(x):'"
    return {"options": options, "call": call, "prompts": prompt}


class Attacker:
    """Makes tasks, and calls those that can be made."""

    def __init__(self, folder: Path) -> None:
        """Import PaddleNLP, which takes a while, and export the model."""
        self._model = write_model(folder / "model")
        self._home = str(folder / "exports")
        self.attack({"options": {}, "call": {}, "prompts": "'def f(x):'"})

    def attack(self, given: dict[str, Any]) -> Outcome:
        """Make one task, and call it once."""
        prepare_paths()
        keywords = {name: evaluated(one) for name, one in given["options"].items()}
        call = {name: evaluated(one) for name, one in given["call"].items()}

        def complete(prompts: Any, **_: Any) -> None:
            from paddlenlp import Taskflow

            import paddlenlp_codegen_task  # noqa: F401  registers the task

            wanted = {"device_id": -1, "home_path": self._home, "max_length": 4, **keywords}
            # The model's name is for PaddleNLP to check, before it comes here.
            task = Taskflow("code_generation", **{"task_path": str(self._model), **wanted})
            try:
                found = task(prompts, **call)
            finally:
                task.task_instance._generator.close()
            if "output_scores" not in {*keywords, *call}:
                check(isinstance(found, list), f"gives {type(found).__name__}, no list")

        return judged(complete, {**keywords, **call, "prompts": evaluated(given["prompts"])})
