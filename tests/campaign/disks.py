"""Disks that are full, out of file names, or bear no large files, under whatever is written.

A small file system in memory is mounted where that is permitted, in a namespace of this process;
else files may only be so long (RLIMIT_FSIZE).
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import resource
import shutil
import threading
from pathlib import Path
from random import Random
from typing import Any

from . import exports
from .models import Child, load, output, write_model
from .outcomes import Failure, Outcome, check, one_line

FLOOR = 1000
LIMIT = 30.0  # two processes, the second without the obstacle

SIZE = 32 << 20  # bytes of the file system
NAMES = 300  # of files that it has room for

# About what each work writes, in bytes and in files: limits are drawn from a little more.
WRITTEN = {
    "onnxruntime": (750_000, 12),
    "paddle": (800_000, 12),
    "session": (60_000, 2),
    "server": (400_000, 30),
    "hub": (400_000, 30),
}
MODEL = {"name": "model"}
NAME = "Salesforce/codegen-350M-mono"

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18


def draw(random: Random) -> dict[str, Any]:
    """What is written, and which obstacle it meets after how many bytes or files."""
    return draw_obstacle(random, ["onnxruntime"] * 5 + ["session"] * 3 + ["hub"] * 2 + ["paddle"])


def draw_obstacle(random: Random, works: list[str]) -> dict[str, Any]:
    """The same, for one of these works."""
    work = random.choice(works)
    size, names = WRITTEN[work]
    obstacle = random.choice(["bytes"] * 4 + ["length"] * 2 + ["names"])
    most = names if obstacle == "names" else int(size * 1.2)
    if random.randrange(4) == 0:
        most = min(most, 4096)
    # `late`: the disk fills only after the package has looked at how much is free.
    late = random.randrange(5) > 0
    return {"work": work, "obstacle": obstacle, "amount": random.randrange(most), "late": late}


class Attacker:
    """Writes on a disk of its own, in processes that it forks.

    Attributes:
        disk: where everything is written.
        model: the checkpoint that is exported; elsewhere.
        served: the files of the model that is downloaded.
    """

    def __init__(self, folder: Path) -> None:
        """Mount the disk, write a model, and serve another."""
        self._folder = folder
        self.disk = folder / "disk"
        self.disk.mkdir(exist_ok=True)
        self._may_mount = _mount(self.disk)  # first: it wants a process of one thread
        self.model = write_model(folder / "model")
        self.served = self._serve()
        self._expected: dict[str, list[Any]] = {}
        self._import()

    def _import(self) -> None:
        """Import what forked processes need."""
        from paddlenlp_codegen_task.runtime import engines

        for engine in engines.MODULES:
            engines.load_engine(engine)

    def attack(self, given: dict[str, Any]) -> Outcome:
        """Write with an obstacle; then, unless that worked, without it."""
        for left in self.disk.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        obstacle = given["obstacle"]
        if not self._may_mount:
            obstacle = "length"
        works = {"session": _Save, "server": _Download, "hub": _Download}
        work = works.get(given["work"], _Export)(self, given["work"])
        work.prepare()
        filler = self.disk / "filler"
        if obstacle != "length":
            _fill(filler, obstacle, given["amount"])

        def obstructed() -> Any:
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            if obstacle == "length":
                resource.setrlimit(resource.RLIMIT_FSIZE, (given["amount"], limits[1]))
            if given["late"]:
                usage = shutil.disk_usage(self.disk)
                shutil.disk_usage = lambda _: usage._replace(free=1 << 40)  # type: ignore[assignment]
            try:
                return work.write()
            finally:  # what it has found is written to another disk
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)

        found = Child(obstructed, self._folder / "result").wait()
        if "error" not in found:
            work.check_written(found["value"])
            return Outcome.WORKED
        error = _Refusal(found)
        _check_type(error, work, obstacle)
        work.check_refused(one_line(error))
        shutil.rmtree(filler) if filler.is_dir() else filler.unlink(missing_ok=True)
        again = Child(work.write, self._folder / "result").wait()
        check("value" in again, f"with space again: {again}")
        work.check_written(again["value"])
        return Outcome.REFUSED

    def expected(self, engine: str) -> list[Any]:
        """What the model answers when nothing is in its way."""
        if engine not in self._expected:
            home = self._folder / "undisturbed"

            def complete() -> list[Any]:
                with load(self.model, home, engine) as generator:
                    return output(generator)

            found = Child(complete, self._folder / "result").wait()
            self._expected[engine] = found["value"]
        return self._expected[engine]

    def _serve(self) -> dict[str, bytes]:
        """Serve a model as both PaddleNLP's server and the hub do, and have this process ask."""
        from file_server import FileServer
        from huggingface_hub import constants, file_download

        server = FileServer()
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        files = ["config.json", "vocab.json", "merges.txt", "model.safetensors"]
        content = {name: (self.model / name).read_bytes() for name in files}
        server.paddle[NAME] = server.hub[NAME] = content
        for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            os.environ.pop(variable, None)
        os.environ["PPNLP_ENDPOINT"] = server.url + "/paddlenlp"
        constants.ENDPOINT = server.url
        constants.HF_HUB_CACHE = str(self.disk / "huggingface")
        constants.HF_HUB_OFFLINE = False
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        file_download.HUGGINGFACE_CO_URL_TEMPLATE = template
        constants.DOWNLOAD_CHUNK_SIZE = 4096  # of 10 MB, it would write all at once
        return content


class _Refusal(Exception):
    """The error of another process."""

    def __init__(self, found: dict[str, Any]) -> None:
        super().__init__(found["error"])
        self.type: str = found["type"].rsplit(".", 1)[-1]


class _Work:
    """Something that writes to the disk."""

    refusals: tuple[str, ...] = ("OSError",)

    def __init__(self, attacker: Attacker, name: str) -> None:
        self.attacker, self.name, self.disk = attacker, name, attacker.disk

    def prepare(self) -> None:
        """Write what is there before."""

    def write(self) -> Any:
        """Do it; in another process."""
        raise NotImplementedError

    def check_written(self, found: Any) -> None:
        """A Failure unless all is there."""
        raise NotImplementedError

    def check_refused(self, message: str) -> None:
        """A Failure if something half-done is there."""
        raise NotImplementedError


class _Export(_Work):
    refusals = ("ExportError",)

    def prepare(self) -> None:
        self.attacker.expected(self.name)

    def write(self) -> list[Any]:
        with load(self.attacker.model, self.disk / "home", self.name) as generator:
            return output(generator)

    def check_written(self, found: Any) -> None:
        check(found == self.attacker.expected(self.name), f"another output: {found}")
        check(len(exports.published(self._root)) == 1, "more than one export")
        check(not exports.debris(self._root), f"{exports.debris(self._root)} is left")

    def check_refused(self, message: str) -> None:
        if self._root.is_dir():
            check(not exports.published(self._root), "an export is there, although refused")
            check(not exports.debris(self._root), f"{exports.debris(self._root)} is left")

    @property
    def _root(self) -> Path:
        return exports.root(self.disk / "home", self.attacker.model.name)


class _Save(_Work):
    def prepare(self) -> None:
        self._save("before")

    def write(self) -> None:
        self._save("after")

    def check_written(self, found: Any) -> None:
        self._check_holds("after")

    def check_refused(self, message: str) -> None:
        self._check_holds("before")
        left = {path.name for path in self.disk.iterdir()} - {"session.json", "filler"}
        check(not left, f"{left} is left")

    def _save(self, word: str) -> None:
        from paddlenlp_codegen_task.session import Session, Turn

        turns = [Turn(f"# {word}", f"{word}\n" * 100)] * 50
        Session(lambda *_: "", MODEL, turns).save(self.disk / "session.json")

    def _check_holds(self, word: str) -> None:
        from paddlenlp_codegen_task.session import read_turns

        turns = read_turns(self.disk / "session.json", MODEL)
        check(turns[-1].specification == f"# {word}", "a session holds other turns")
        check(len(turns) == 50, "a session lacks turns")


class _Download(_Work):
    refusals = ("DownloadError",)

    def write(self) -> dict[str, str]:
        from paddlenlp_codegen_task.model import hub

        folder = hub.fetch(NAME, from_hf_hub=self.name == "hub", home=self.disk / "home")
        return {name: _digest((folder / name).read_bytes()) for name in self.attacker.served}

    def check_written(self, found: Any) -> None:
        expected = {name: _digest(content) for name, content in self.attacker.served.items()}
        check(found == expected, "another model than is served")

    def check_refused(self, message: str) -> None:
        from paddlenlp_codegen_task.model import hub

        found = hub.cached(NAME, from_hf_hub=self.name == "hub", home=self.disk / "home")
        check(found is None, "a model that was refused counts as complete")


def _check_type(error: _Refusal, work: _Work, obstacle: str) -> None:
    """A limit of files' lengths is no full disk, and may be told of by the system's own error."""
    allowed = (*work.refusals, "OSError") if obstacle == "length" else work.refusals
    check(error.type in allowed, f"{error.type}, none of {allowed}: {error}")


def _fill(filler: Path, obstacle: str, amount: int) -> None:
    """Leave so many bytes, or names, on the disk."""
    state = os.statvfs(filler.parent)
    if obstacle == "names":
        filler.mkdir()
        for number in range(state.f_favail - 1 - amount):
            (filler / str(number)).touch()
    else:
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, state.f_bavail * state.f_frsize - amount))


def _mount(folder: Path) -> bool:
    """Mount a small file system that only this process and its children see; whether that works."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()

    def call(name: str, *arguments: Any) -> None:
        if getattr(libc, name)(*arguments):
            code = ctypes.get_errno()
            raise OSError(code, f"{name}: {os.strerror(code)}")

    try:
        if user == 0:
            call("unshare", _CLONE_NEWNS)
        else:
            call("unshare", _CLONE_NEWNS | _CLONE_NEWUSER)
            Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1", encoding="ascii")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1", encoding="ascii")
        call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
        options = f"size={SIZE},nr_inodes={NAMES}".encode()
        call("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS):
            raise Failure("cannot tell whether a file system may be mounted") from error
        print(f"no file system is mounted, files are limited instead: {error}", flush=True)
        return False
    return True


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
