"""benchmarks/truncation.py and what it works with, on a few small files of each language."""

from __future__ import annotations

import io
import json
import runpy
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

# `«` marks where a prompt ends, and `»` where its completion should, by the parser.
MARKED = [
    ("python", "def f(x):\n    ret«urn x»\n\n\ny = 1\n"),
    ("python", "class A:\n    def f(self, «x):\n        return x  # why»\n\n    z = 1\n"),
    ("python", "def f():\n    def g():\n        «pass\n    return g»\n\nf()\n"),
    ("python", "def f():\n    x = '''«a\n'''; return x;\n    # deeper\n\n    # than f»\n# not\n"),
    ("python", "@a«\ndef f():\n    pass»\n\ndef g(): pass\n"),
    ("python", "class A:\n    @a«\n    def f(self):\n        pass\n    x = 1»\nz = 1\n"),
    ("python", "if a:\n    def f():\n        «é = 1»\n    f()\n"),
    ("java", "class A { int f() «{ return 1; }» int g() { return 2; } }"),
    ("java", "enum E { A(1) { int f() { «return 1; }» int g() { return 2; } } }"),
    ("java", "class A { static { x(() -> { «y(); }); }» int f() { return 1; } }"),
    ("javascript", "function f() { «return function () {}; }»\nf();\n"),
    ("javascript", "on(x, () => { «y(); });»\nz();\n"),
    ("javascript", "(function () { function f() { «y(); }» f(); })();\n"),
    ("javascript", "!function () { var f = function () { «y(); };» f(); }();\n"),
    ("javascript", "if (a) { function f() { «y(); } } else { z(); }»\nz();\n"),
    ("javascript", "class A { f() { «y(); }» g() { z(); } }\n"),
    ("javascript", "module.exports = { f() { «y('é'); }», g() { z(); } };\n"),
    ("go", "package p\n\nfunc f() {\n\tx(func() { «y() })\n}»\n\nfunc g() {}\n"),
    ("c", "static int f(int «x) { return x; }»\nint g(void) { return 1; }\n"),
    ("cpp", "TEST(a) { x([](int y) { «z(y); }); }»\nint g() { return 1; }\n"),
    ("cpp", "namespace n { struct A { int f() { «return 1; }» int g(); }; }\n"),
]
FILES = {
    "python": (
        "a.py",
        "class A:\n    def f(self):\n        '''\n}'''\n        return 1\n\n    x = 1\n",
    ),
    "java": ("A.java", "class A {\n    int f() {\n        return 1;\n    }\n\n    int x = 1;\n}\n"),
    "javascript": ("a.js", "const f = (x) => {\n  return `}${x}`;\n};\n\nf(1);\n"),
    "go": ("a.go", "package p\n\nfunc f() int {\n\treturn 1\n}\n\nvar x = f()\n"),
    "c": ("a.c", "int f(void) {\n  return '}';\n}\n\nint x = 1;\n"),
    "cpp": ("a.cpp", "struct A {\n  int f() const {\n    return 1;\n  }\n\n  int x = 1;\n};\n"),
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Runs a script as `python benchmarks/script` does."""

    def run(script: str, *arguments: object) -> None:
        path = str(BENCHMARKS / script)
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        runpy.run_path(path, run_name="__main__")

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield run
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(BENCHMARKS):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for language, (name, text) in FILES.items():
        file = tmp_path / "sources" / language / "package" / name
        file.parent.mkdir(parents=True)
        file.write_text(text, encoding="utf-8")
    return tmp_path / "sources"


@pytest.mark.parametrize(("language", "marked"), MARKED)
def test_where_the_parser_says(run: Callable[..., None], language: str, marked: str) -> None:
    import truncation

    prompt, rest = marked.split("«")
    kept, more = rest.split("»")
    source = truncation.read(language, prompt + kept + more)
    assert len(prompt + kept) in source.expected(len(prompt)).ends


def test_files_that_are_left_out(run: Callable[..., None], tmp_path: Path) -> None:
    import truncation

    file = tmp_path / "a.py"
    for content in (b"x = '\xff'\n", b"# coding: none\n", b"x" * 70_000, b"x = [" + b"1," * 200):
        file.write_bytes(content)
        assert truncation.count_functions(("python", file)) is None
    file.write_bytes(b"\xef\xbb\xbfdef f():\r\n    pass\r\n")
    assert truncation.count_functions(("python", file)) == (1, 0)
    broken = tmp_path / "a.c"
    broken.write_text("int f() { return 1; }\nint g() { x = ; }\n", encoding="utf-8")
    assert truncation.count_functions(("c", broken)) == (1, 1)


def test_truncation(run: Callable[..., None], folder: Path, tmp_path: Path) -> None:
    """Nothing differs, and the table and the results say so."""
    page, results = tmp_path / "page.md", tmp_path / "out" / "results.json"
    page.write_text("<!-- tables -->\n<!-- end of tables -->\n", encoding="utf-8")
    run(
        "truncation.py",
        folder,
        *("--cuts", 60, "--processes", 1, "--out", results, "--pages", page),
    )
    languages = json.loads(results.read_text(encoding="utf-8"))["languages"]
    assert list(languages) == list(FILES)
    for language, found in languages.items():
        assert (found["cuts"], found["files"], found["differences"]) == (60, 1, 0), language
        assert found["decided"] + found["undecided"] == 60
        assert found["decided"] > 30
        assert (folder / f"differences-{language}.jsonl").read_text(encoding="utf-8") == ""
        assert f"| `{language}` | 60 | 1 | 0 |" in page.read_text(encoding="utf-8")

    run(
        "truncation.py",
        folder,
        "--languages",
        "go",
        "--cuts",
        5,
        "--processes",
        1,
        "--out",
        results,
    )
    after = json.loads(results.read_text(encoding="utf-8"))["languages"]
    assert {name: one["cuts"] for name, one in after.items() if one != languages[name]} == {"go": 5}


def test_differences_are_found_and_made_small(
    run: Callable[..., None],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As if Java's functions were taken to end at the first closing brace."""
    import truncation

    class First(truncation.Truncator):
        def __init__(self, language: str) -> None:
            super().__init__(r"(?<=\})")

    monkeypatch.setattr(truncation, "Truncator", First)
    text = (
        "class B {\n  int a() {\n    return 0;\n  }\n\n  int f() {\n    { x(); }\n    y();\n  }\n}"
    )
    (folder / "java" / "B.java").write_text(text, encoding="utf-8")
    found = truncation.compare("java", folder, 60, 0, 1)
    kinds = {difference.kind for difference in found.differences}
    assert kinds == {"early"}
    assert {Path(difference.file).name for difference in found.differences} == {"B.java"}
    target = tmp_path / "differences.jsonl"
    lines = [json.dumps(vars(difference)) for difference in found.differences]
    target.write_text("\n".join(lines), encoding="utf-8")
    capsys.readouterr()

    run("reduction.py", target, "--most", 1)
    shown: dict[str, Any] = {}
    exec(capsys.readouterr().out, shown)
    small = shown["prompt"] + shown["completion"]
    assert len(small) < len(text) // 2
    assert shown["got"] + "}" == shown["expected"]


def test_differences_that_are_mended(
    run: Callable[..., None], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, text = FILES["go"]
    file = folder / "go" / "package" / name
    difference = {
        "language": "go",
        "file": str(file),
        "offset": text.index("return"),
        "kind": "late",
    }
    target = folder / "differences.jsonl"
    target.write_text(json.dumps({**difference, "newline": "\n", "bom": False}), encoding="utf-8")
    run("reduction.py", target)
    assert "no difference now" in capsys.readouterr().out


def archive(path: Path, members: dict[str, str]) -> None:
    with tarfile.open(path, "w:gz") as file:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            file.addfile(member, io.BytesIO(text.encode()))


def test_sources(
    run: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With an npm that has every package but one."""
    archive(tmp_path / "package.tgz", {"package/a.js": "f();", "package/a.css": "", "b.mjs": ""})
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(f'#!/bin/sh\n[ "$3" != vue ] && cp "{tmp_path}/package.tgz" .\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(npm.parent), prepend=":")
    with pytest.raises(SystemExit, match=r"^not to be had: vue$"):
        run("real_code.py", tmp_path / "out", "--languages", "javascript", "python")
    packages = tmp_path / "out" / "javascript"
    files = sorted(str(path.relative_to(packages)) for path in packages.glob("lodash/**/*.*"))
    assert files == ["lodash/b.mjs", "lodash/package/a.js"]
    assert not (packages / "vue").exists()
    assert "javascript: 2 files of lodash" in capsys.readouterr().out


def test_an_archive_that_leads_elsewhere(run: Callable[..., None], tmp_path: Path) -> None:
    import real_code

    archive(tmp_path / "package.tgz", {"../a.js": ""})
    with pytest.raises(SystemExit, match=r"'\.\./a\.js' would be written elsewhere"):
        real_code.take_files(tmp_path / "package.tgz", (".js",), tmp_path / "out")
    assert not (tmp_path / "a.js").exists()
