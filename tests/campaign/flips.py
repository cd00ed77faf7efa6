"""Bits flip, and files end early, in exports, checkpoints, tokenizers and sessions.

Each is refused in one line, made again, or of no effect. Where a format has no checksum, a flip may
make a file that says something else; then what is read must be what the format's own library, or
plain JSON, reads from it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from . import exports
from .models import PROMPT, config, load, output, tensors, write_model
from .outcomes import Failure, Outcome, check, one_line

if TYPE_CHECKING:
    import numpy as np

FLOOR = 5000
LIMIT = 10.0

EXPORTS = {"onnxruntime-fp32": 4, "onnxruntime-int8": 2, "paddle-fp32": 1}
CHECKPOINTS = ("safetensors", "safetensors-shards", "torch", "torch-legacy", "paddle2", "paddle4")
OTHER_DAMAGE = ["flips", "zeros", "append", "json"]
OTHERS = ("config", "tokenizer", "session")
STRAY = {"tokenizer.json": "{}", "added_tokens.json": '{"def": 300}', "stray": ""}
HOSTILE_JSON = [
    *("1e999", "-1e999", "NaN", "-1", "0", "1" + "0" * 30, "1" + "0" * 5000, "0.5", "true", "null"),
    *('"a\\nb"', '"\\u0000"', '"\\ud800"', '"' + "long" * 5000 + '"', '""', "[]", "{}", "[[]]"),
    *('{"version": []}', "[" * 100_000, "[" * 100_000 + "]" * 100_000, '{"a":' * 50_000),
]
WEIGHTS = (".safetensors", ".bin", ".pdparams")


def draw(random: Random) -> dict[str, Any]:
    """Which file of what is damaged, and how."""
    weighted = [name for name, weight in EXPORTS.items() for _ in range(weight)]
    target = random.choice([random.choice(weighted), random.choice([*CHECKPOINTS, *OTHERS])])
    given = {
        "target": target,
        "file": random.randrange(1 << 16),  # modulo how many there are
        "how": random.choice(["flip"] * 9 + ["truncate"] * 3 + OTHER_DAMAGE),
        # Modulo the file's length; half are near its beginning, where what describes the rest is.
        "places": [random.choice([random.randrange(600), random.randrange(1 << 30)])],
        "bit": random.randrange(8),
    }
    if given["how"] == "json":
        given["value"] = random.randrange(len(HOSTILE_JSON))
    if given["how"] == "flips":
        given["places"] += [random.randrange(1 << 30) for _ in range(5)]
    if target in EXPORTS:
        given["by"] = random.choice(["from_pretrained", "from_export"])
        given["large"] = random.choice([False, True])  # read while the graph is loaded
        if random.randrange(12) == 0:
            given["how"], given["stray"] = "stray", random.choice([*STRAY])
        elif random.randrange(12) == 0:
            given["how"] = "remove"
    return given


def damage(path: Path, given: dict[str, Any]) -> bytes:
    """Damage one file as `draw` says; return what it held."""
    before = path.read_bytes()
    content = bytearray(before)
    places = [place % max(1, len(content)) for place in given["places"]]
    match given["how"]:
        case "flip" | "flips":
            for place in places if content else []:
                content[place] ^= 1 << given["bit"]
        case "truncate":
            del content[places[0] :]
        case "zeros":
            content[places[0] : places[0] + 64] = bytes(len(content[places[0] :][:64]))
        case "append":
            content += b"\0" * (given["bit"] + 1)
        case "json" if path.suffix == ".json":
            content[:] = _with_value(before, places[0], HOSTILE_JSON[given["value"]])
    path.write_bytes(content)
    return before


def _with_value(content: bytes, number: int, value: str) -> bytes:
    """Replace one value in a file of JSON, or all of it, by JSON that is hostile."""
    whole = [json.loads(content)]
    found: list[tuple[Any, Any]] = []  # containers, and where they hold something
    waiting: list[Any] = [whole]
    while waiting:
        holder = waiting.pop()
        keys = holder.keys() if isinstance(holder, dict) else range(len(holder))
        found += [(holder, key) for key in keys]
        waiting += [holder[key] for key in keys if isinstance(holder[key], (dict, list))]
    holder, key = found[number % min(len(found), 40)]  # vocabularies are long and all alike
    holder[key] = "here"
    return json.dumps(whole[0]).replace('"here"', value).encode()


class Attacker:
    """Keeps one good copy of everything, and damages copies of it."""

    def __init__(self, folder: Path) -> None:
        """Write all formats; export where that has not been done."""
        self._folder = folder
        self._model = write_model(folder / "model")
        self._pristine: dict[str, Path] = {}
        self._expected: dict[str, list[Any]] = {}
        self._tensors: dict[str, dict[str, np.ndarray]] = {}
        for target in CHECKPOINTS:  # each imports what writes it, which takes a while
            self._copied(target)

    def attack(self, given: dict[str, Any]) -> Outcome:
        """Damage one copy of one file, and use it."""
        target = given["target"]
        if target in EXPORTS:
            return self._attack_export(given)
        if target in CHECKPOINTS:
            return self._attack_checkpoint(given)
        attacks: dict[str, Callable[[dict[str, Any]], Outcome]] = {
            "config": self._attack_config,
            "tokenizer": self._attack_tokenizer,
            "session": self._attack_session,
        }
        return attacks[target](given)

    # Exports: their manifest has checksums

    def _attack_export(self, given: dict[str, Any]) -> Outcome:
        from paddlenlp_codegen_task import CodeGenerator
        from paddlenlp_codegen_task.export import store

        engine, precision = given["target"].split("-")
        pristine = self._exported(given["target"])
        home = self._fresh("copied-home")
        root = exports.root(home, self._model.name)
        export = root / pristine.name
        shutil.copytree(pristine, export)
        if given["how"] == "stray":
            (export / given["stray"]).write_text(STRAY[given["stray"]], encoding="utf-8")
        else:
            files = sorted(export.iterdir())
            path = files[given["file"] % len(files)]
            path.unlink() if given["how"] == "remove" else damage(path, given)
        before = export.stat().st_ino
        large, store._LARGE = store._LARGE, 1000 if given["large"] else 16 << 20
        try:
            if given["by"] == "from_export":
                options = {"device": "cpu", "num_threads": 1}
                with CodeGenerator.from_export(export, **options) as generator:
                    self._compare(output(generator), given["target"])
                return Outcome.WORKED
            with load(self._model, home, engine, precision) as generator:
                self._compare(output(generator), given["target"])
            exports.published(root)
            check(not exports.debris(root), f"{exports.debris(root)} is left")
            return Outcome.WORKED if export.stat().st_ino == before else Outcome.REBUILT
        except (store.ExportError, ValueError, OSError) as error:
            if given["by"] != "from_export":
                raise Failure("not built again") from error
            one_line(error, [str(export)])
            return Outcome.REFUSED
        finally:
            store._LARGE = large

    def _exported(self, target: str) -> Path:
        if target not in self._pristine:
            with load(self._model, self._folder / "pristine", *target.split("-")) as generator:
                self._pristine[target], self._expected[target] = generator.folder, output(generator)
        return self._pristine[target]

    def _compare(self, found: list[Any], target: str) -> None:
        check(found == self._expected[target], f"silently gives {found}")

    # Checkpoints: torch's zip files have checksums, the others have none

    def _attack_checkpoint(self, given: dict[str, Any]) -> Outcome:
        from paddlenlp_codegen_task.model.checkpoint import CheckpointError, open_checkpoint

        folder = self._copied(given["target"])
        files = sorted(path for path in folder.iterdir() if path.name != "config.json")
        path = files[given["file"] % len(files)]
        damage(path, given)
        sizes = config()
        try:
            with open_checkpoint(folder) as checkpoint:
                checkpoint.check(sizes)
                found = {name: checkpoint.read(name) for name in self._tensors[given["target"]]}
        except (CheckpointError, FileNotFoundError) as error:
            one_line(error, [file.name for file in files])
            return Outcome.REFUSED
        if _same(found, self._tensors[given["target"]]):
            return Outcome.WORKED
        check(given["target"] != "torch", "other weights, although their file has checksums")
        check(path.suffix in WEIGHTS, "other weights, from the same files")
        theirs = _read_by_others(folder, given["target"])
        check(_same(found, theirs), "other weights than the format's own library reads")
        return Outcome.CHANGED

    def _copied(self, target: str) -> Path:
        """A copy of a checkpoint in some format, to be damaged."""
        import checkpoints

        pristine = self._folder / "formats" / target
        if target not in self._tensors:
            shutil.rmtree(pristine, ignore_errors=True)
            self._tensors[target] = weights = tensors()
            match target.split("-"):
                case ["safetensors", *shards]:
                    checkpoints.write_safetensors(
                        pristine, weights, config(), shards=2 if shards else 1
                    )
                case ["torch", *legacy]:
                    checkpoints.write_torch(pristine, weights, config(), legacy=bool(legacy))
                case _:
                    checkpoints.write_paddle(
                        pristine, weights, config(), protocol=int(target.removeprefix("paddle"))
                    )
        return shutil.copytree(pristine, self._fresh("copy"))

    # Files of JSON: nothing but their content tells whether they are what was written

    def _attack_config(self, given: dict[str, Any]) -> Outcome:
        from paddlenlp_codegen_task.model.config import CodeGenConfig

        folder = self._fresh("copy")
        folder.mkdir()
        path = Path(shutil.copy(self._model / "config.json", folder))
        damage(path, given)
        try:
            found = CodeGenConfig.from_folder(folder)
        except ValueError as error:
            one_line(error, [str(folder)])
            return Outcome.REFUSED
        if found == config():
            return Outcome.WORKED
        said = json.loads(path.read_text(encoding="utf-8"))
        for name in SIZE_NAMES:
            if name in said and said[name] is not None:
                check(getattr(found, name) == said[name], f"reads another {name} than is there")
        check(said != json.loads((self._model / "config.json").read_bytes()), "reads other sizes")
        return Outcome.CHANGED

    def _attack_tokenizer(self, given: dict[str, Any]) -> Outcome:
        from paddlenlp_codegen_task.finding import BUILTIN_FOLDER
        from paddlenlp_codegen_task.model.names import TOKENIZER_FILES
        from paddlenlp_codegen_task.model.tokenizer import Tokenizer

        folder = self._fresh("copy")
        folder.mkdir()
        present = [name for name in TOKENIZER_FILES if (BUILTIN_FOLDER / name).is_file()]
        for name in present:
            shutil.copy(BUILTIN_FOLDER / name, folder)
        path = folder / present[given["file"] % len(present)]
        before = damage(path, given)
        try:
            found = Tokenizer.from_folder(folder)
            ids = found.encode(PROMPT)
            found.decode(ids)
        except (ValueError, FileNotFoundError) as error:
            one_line(error, [str(folder)])
            return Outcome.REFUSED
        check(all(0 <= one < found.vocab_size for one in ids), "ids beyond the vocabulary")
        expected = Tokenizer.from_folder(BUILTIN_FOLDER)
        if ids == expected.encode(PROMPT) and found.vocab_size == expected.vocab_size:
            return Outcome.WORKED
        check(_content(path.read_bytes()) != _content(before), "other tokens, from the same files")
        return Outcome.CHANGED

    def _attack_session(self, given: dict[str, Any]) -> Outcome:
        from paddlenlp_codegen_task.session import Session, Turn, read_turns

        folder = self._fresh("copy")
        folder.mkdir()
        path = folder / "session.json"
        turns = [Turn("# 排序 the list", "\n    return sorted(x)"), Turn("\nx = '\x07'", "")]
        Session(lambda *_: "", {"name": "model"}, turns).save(path)
        damage(path, given)
        try:
            found = read_turns(path, {"name": "model"})
        except ValueError as error:
            one_line(error, [str(path)])
            return Outcome.REFUSED
        if found == turns:
            return Outcome.WORKED
        said = json.loads(path.read_text(encoding="utf-8"))["turns"]
        check([vars(one) for one in found] == said, "reads other turns than are there")
        return Outcome.CHANGED

    def _fresh(self, name: str) -> Path:
        """The path of a folder that is not there."""
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder


SIZE_NAMES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "rotary_dim", "n_inner")


def _same(ones: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> bool:
    """Whether two sets of weights are the same to the last bit."""
    return ones.keys() == others.keys() and all(
        values.shape == others[name].shape and values.tobytes() == others[name].tobytes()
        for name, values in ones.items()
    )


def _content(written: bytes) -> object:
    """What a tokenizer's file says; the blanks of JSON say nothing."""
    try:
        return json.loads(written)
    except ValueError:
        return written


def _read_by_others(folder: Path, target: str) -> dict[str, np.ndarray]:
    """What the library of a format reads, as [out, in]."""
    import numpy as np

    files = [path for path in sorted(folder.iterdir()) if path.suffix in WEIGHTS]
    found: dict[str, np.ndarray] = {}
    if target.startswith("safetensors"):
        from safetensors.numpy import load_file

        for file in files:
            found |= load_file(file)
    elif target.startswith("torch"):
        import torch

        for file in files:
            loaded = torch.load(file, weights_only=True)
            found |= {name: tensor.numpy() for name, tensor in loaded.items()}
    else:
        import paddle
        from checkpoints import transposed

        for file in files:
            loaded = paddle.load(str(file), return_numpy=True)
            found |= {name: transposed(name, values) for name, values in loaded.items()}
    names = tensors().keys()
    return {name: np.asarray(found[name], np.float32) for name in names if name in found}
