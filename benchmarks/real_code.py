"""Fetches real source code in each language, for truncation.py.

    python benchmarks/real_code.py build/truncation

Source packages come from Debian by apt-get, npm packages by npm, each from where the client is
configured to look. Nothing of them is run or installed: only the files of the language are taken
out, one folder a language. Packages that are there already are left. For Python nothing is
fetched: its standard library is where Python is.
"""

from __future__ import annotations

import argparse
import subprocess
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

SUFFIXES = {
    "python": (".py",),
    "java": (".java",),
    "javascript": (".js", ".jsx", ".mjs", ".cjs"),
    "go": (".go",),
    "c": (".c", ".h"),
    "cpp": (".cc", ".cpp", ".cxx", ".hpp", ".hh"),
}
DEBIAN = {
    "java": ("guava-libraries", "libcommons-lang3-java", "jackson-databind",
             "mockito", "netty"),
    "go": ("golang-1.19", "golang-github-spf13-cobra"),
    "c": ("redis", "curl", "lua5.4", "tmux", "openssh", "zlib", "libuv1",
          "libevent", "gawk", "nano"),
    "cpp": ("leveldb", "fmtlib", "re2", "rapidjson", "protobuf", "googletest", "spdlog",
            "libjsoncpp", "poco", "tinyxml2"),
}  # fmt: skip
NPM = {
    "javascript": ("lodash", "express", "react-dom", "jquery", "vue", "moment", "webpack",
                   "eslint", "underscore", "backbone", "async", "bluebird", "socket.io", "mocha",
                   "ejs", "handlebars", "yargs", "three", "d3-array", "gatsby",
                   "@wordpress/components", "@wordpress/block-library", "pdfkit", "less"),
}  # fmt: skip


def fetch_debian(package: str, work: Path) -> list[Path]:
    """Download a source package's upstream archives into `work`; return their paths."""
    subprocess.run(
        ["apt-get", *source_lists(work.parent), "source", "--download-only", "--quiet", package],
        cwd=work,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return sorted(path for path in work.glob("*.orig*.tar.*") if path.suffix != ".asc")


def source_lists(folder: Path) -> list[str]:
    """Options of apt-get to know Debian's source packages, as far as it knows the binary ones."""
    lists, sources = folder / "lists", folder / "debian.sources"
    options = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": lists,
    }
    given = [f"-o={name}={value}" for name, value in options.items()]
    if not lists.exists():
        configured = Path("/etc/apt/sources.list.d/debian.sources").read_text(encoding="utf-8")
        sources.write_text(configured.replace("Types: deb\n", "Types: deb-src\n"), encoding="utf-8")
        (lists / "partial").mkdir(parents=True)
        subprocess.run(["apt-get", *given, "--quiet", "update"], check=True)
    return given


def fetch_npm(package: str, work: Path) -> list[Path]:
    """Download a package's archive into `work`; return its path."""
    subprocess.run(["npm", "pack", "--silent", package], cwd=work, check=True)
    return list(work.glob("*.tgz"))


def take_files(archive: Path, suffixes: tuple[str, ...], folder: Path) -> int:
    """Write the archive's files that have one of the suffixes under `folder`; return how many."""
    count = 0
    with tarfile.open(archive) as members:
        for member in members:
            path = PurePosixPath(member.name)
            if not member.isfile() or path.suffix not in suffixes:
                continue
            if path.is_absolute() or ".." in path.parts:
                raise SystemExit(f"{archive.name}: {member.name!r} would be written elsewhere")
            file = members.extractfile(member)
            assert file is not None  # it is a plain file
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read())
            count += 1
    return count


def fetch(language: str, folder: Path) -> list[str]:
    """Fill `folder`/<language> with the packages that it lacks; return those not to be had."""
    missing = []
    for get, packages in ((fetch_debian, DEBIAN), (fetch_npm, NPM)):
        for package in packages.get(language, ()):
            target = folder / language / package.replace("/", "+")
            if target.exists():
                continue
            work = folder / "apt"
            work.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=work) as download:
                try:
                    archives = get(package, Path(download))
                except subprocess.CalledProcessError:  # the client has said why
                    missing.append(package)
                    continue
                unpacked = Path(download) / "unpacked"
                unpacked.mkdir()
                count = sum(take_files(path, SUFFIXES[language], unpacked) for path in archives)
                target.parent.mkdir(parents=True, exist_ok=True)
                unpacked.rename(target)
            print(f"{language}: {count} files of {package}", flush=True)
    return missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--languages", nargs="*", choices=SUFFIXES, default=[*SUFFIXES])
    options = parser.parse_args()
    missing = [
        package
        for language in options.languages
        for package in fetch(language, options.folder.resolve())
    ]
    if missing:
        raise SystemExit(f"not to be had: {', '.join(missing)}")


if __name__ == "__main__":
    main()
