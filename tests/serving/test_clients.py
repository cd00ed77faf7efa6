"""Real clients: each is asked to do what its users do, and reads our answers with its own code.

Node's openai package is looked for where NODE_PATH says; it and litellm, which brings a great deal
with it, are no part of the extra `dev`: their tests are skipped where they are not.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ollama
import openai
import pytest
from huggingface_hub import InferenceClient, constants, errors
from huggingface_hub.utils import reset_sessions
from running_server import PATIENCE, Running

from paddlenlp_codegen_task.serving.settings import Settings

PROMPT = "def add(a, b):\n    "


def greedy(server: Running, **options: Any) -> str:
    """What the generator itself says."""
    options = {"decode_strategy": "greedy_search", "truncation": None, **options}
    [[completion]] = server.generator.generate([PROMPT], **options)
    return completion.text


# Python's openai


@pytest.fixture
def client(server: Running) -> openai.OpenAI:
    """OpenAI's own, which does not try again."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_openai_completes(server: Running, client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="builtin", prompt=[PROMPT, PROMPT], max_tokens=8, temperature=0, n=1, logprobs=2
    )
    assert [choice.text for choice in answer.choices] == [greedy(server, max_length=8)] * 2
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    log_probs = answer.choices[0].logprobs
    assert log_probs is not None
    assert log_probs.tokens is not None
    assert "".join(log_probs.tokens) == answer.choices[0].text


def test_openai_streams_with_usage(server: Running, client: openai.OpenAI) -> None:
    text, usage, reason = "", None, None
    with client.completions.create(
        model="builtin",
        prompt=PROMPT,
        max_tokens=8,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        for part in stream:
            for choice in part.choices:
                text += choice.text
                reason = choice.finish_reason or reason
            usage = part.usage or usage
    assert text == greedy(server, max_length=8)
    assert reason in ("stop", "length")
    assert usage is not None
    assert usage.completion_tokens > 0


def test_openai_raises_what_is_wrong(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature") as raised:
        client.completions.create(model="builtin", prompt=PROMPT, temperature=-1)
    assert raised.value.param == "temperature"
    assert raised.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError, match="suffix"):
        client.completions.create(model="builtin", prompt=PROMPT, suffix="x", stream=True)


def test_openai_lists_models(client: openai.OpenAI) -> None:
    assert "builtin" in [model.id for model in client.models.list()]


def test_openai_speaks_to_fauxpilots_engines(server: Running) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1/engines/codegen", api_key="dummy") as client:
        answer = client.completions.create(
            model="fastertransformer", prompt=PROMPT, max_tokens=8, temperature=0, stop=[]
        )
    assert answer.choices[0].text == greedy(server, max_length=8)


def test_openai_needs_the_key(serve: Callable[..., Running]) -> None:
    url = serve(Settings(api_keys=("secret",))).url + "/v1"
    with openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.completions.create(model="builtin", prompt=PROMPT, max_tokens=1)
        client.api_key = "secret"
        assert client.completions.create(model="builtin", prompt=PROMPT, max_tokens=1).choices


# huggingface_hub's InferenceClient


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let huggingface_hub, which the tests keep from the network, speak to this machine."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    reset_sessions()
    yield
    reset_sessions()


@pytest.fixture(params=["", "/", "/generate", "/models/Salesforce/codegen-350M-mono"])
def inference(server: Running, online: None, request: pytest.FixtureRequest) -> InferenceClient:
    """One with the URL of a server or of a route."""
    return InferenceClient(server.url + request.param, timeout=PATIENCE)


def test_inference_client_generates(server: Running, inference: InferenceClient) -> None:
    text = inference.text_generation(PROMPT, max_new_tokens=8, return_full_text=False)
    assert text == greedy(server, max_length=8)
    answer = inference.text_generation(
        PROMPT, max_new_tokens=8, return_full_text=True, details=True
    )
    assert answer.generated_text == PROMPT + text
    assert answer.details is not None
    assert "".join(token.text for token in answer.details.tokens) == text
    sampled = inference.text_generation(
        PROMPT, max_new_tokens=8, do_sample=True, seed=1, temperature=0.5, top_k=5, top_p=0.9
    )
    assert isinstance(sampled, str)


@pytest.mark.usefixtures("online")
def test_inference_client_streams(server: Running) -> None:
    for path in ("", "/generate_stream"):
        inference = InferenceClient(server.url + path, timeout=PATIENCE)
        asked = {"max_new_tokens": 8, "return_full_text": False, "stream": True}
        parts = list(inference.text_generation(PROMPT, **asked))  # type: ignore[call-overload]
        assert "".join(parts) == greedy(server, max_length=8)
        *_, last = inference.text_generation(PROMPT, details=True, **asked)  # type: ignore[call-overload]
        assert last.generated_text == greedy(server, max_length=8)
        assert last.details.finish_reason in ("length", "eos_token")


def test_inference_client_raises_tgis_errors(server: Running, inference: InferenceClient) -> None:
    raised = errors.ValidationError
    with pytest.raises(raised, match="temperature"):
        inference.text_generation(PROMPT, temperature=-1.0)
    with pytest.raises(raised, match="max_new_tokens"):
        inference.text_generation(PROMPT, max_new_tokens=100000)


@pytest.mark.usefixtures("online")
def test_inference_client_raises_that_a_server_is_full(serve: Callable[..., Running]) -> None:
    server = serve()
    server.app.state.engine.rows = server.app.state.engine.max_rows  # as if so many ran
    inference = InferenceClient(server.url, timeout=PATIENCE)
    with pytest.raises(errors.OverloadedError):
        inference.text_generation(PROMPT)


# Python's ollama


@pytest.fixture
def llama(server: Running) -> ollama.Client:
    """Ollama's own."""
    return ollama.Client(server.url, timeout=PATIENCE)


def test_ollama_generates(server: Running, llama: ollama.Client) -> None:
    options = {"temperature": 0, "num_predict": 8}
    answer = llama.generate("codegen", PROMPT, options=options)
    assert answer.response == greedy(server, max_length=8)
    assert answer.done
    parts = list(llama.generate("codegen", PROMPT, raw=True, stream=True, options=options))
    assert "".join(part.response or "" for part in parts) == answer.response
    assert parts[-1].eval_count == answer.eval_count


def test_ollama_raises_what_is_wrong(llama: ollama.Client) -> None:
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError, match="temperature") as raised:
            list(llama.generate("codegen", PROMPT, options={"temperature": -1}, stream=stream))
        assert raised.value.status_code == 400


def test_ollama_asks_for_models(server: Running, llama: ollama.Client) -> None:
    [model] = llama.list().models
    assert model.model == "builtin"
    assert model.modified_at is not None
    shown = llama.show("builtin")
    assert shown.capabilities == ["completion"]
    assert shown.modelinfo is not None
    assert shown.modelinfo["codegen.context_length"] == server.generator.config.n_positions


# litellm


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("model", "path"), [("text-completion-openai/builtin", "/v1"), ("ollama/builtin", "")]
)
def test_litellm_completes(server: Running, model: str, path: str, stream: bool) -> None:
    litellm = pytest.importorskip("litellm", reason="litellm is not installed")
    answer = litellm.text_completion(
        model=model,
        prompt=PROMPT,
        api_base=server.url + path,
        api_key="none",
        max_tokens=8,
        temperature=0,
        stream=stream,
    )
    parts = list(answer) if stream else [answer]
    text = "".join(part.choices[0].text or "" for part in parts)
    assert text == greedy(server, max_length=8)


# npm's openai

NODE = """
const OpenAI = require('openai').default ?? require('openai');
const [url, prompt] = process.argv.slice(1);
const client = new OpenAI({ baseURL: url + '/v1', apiKey: 'dummy', maxRetries: 0 });
const engine = new OpenAI({ baseURL: url + '/v1/engines/codegen', apiKey: 'dummy' });
const asked = { model: 'fastertransformer', prompt, max_tokens: 8, temperature: 0, stop: [] };
(async () => {
  const whole = await client.completions.create(asked);
  const faux = await engine.completions.create(asked);
  let streamed = '';
  for await (const part of await client.completions.create({ ...asked, stream: true }))
    streamed += part.choices[0].text;
  let error = null;
  try {
    await client.completions.create({ ...asked, temperature: -1 });
  } catch (raised) {
    error = { name: raised.constructor.name, param: raised.param, status: raised.status };
  }
  const texts = [whole.choices[0].text, faux.choices[0].text, streamed];
  console.log(JSON.stringify({ texts, error }));
})();
"""


def test_nodes_openai_completes(server: Running) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    if subprocess.run([node, "-e", "require.resolve('openai')"], capture_output=True).returncode:
        pytest.skip("npm's openai is not installed, or NODE_PATH does not lead to it")
    done = subprocess.run(
        [node, "-e", NODE, server.url, PROMPT],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    told = json.loads(done.stdout)
    assert told["texts"] == [greedy(server, max_length=8)] * 3
    assert told["error"] == {"name": "BadRequestError", "param": "temperature", "status": 400}


# curl


def curl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run it, without what the environment says of proxies."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not installed")
    return subprocess.run(
        [program, "-sS", "--noproxy", "*", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={"PATH": os.environ["PATH"]},
    )


def minuet(server: Running, body: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    """Ask as minuet-ai does (lua/minuet/utils.lua, make_curl_args); it waits for 3 seconds."""
    file = folder / "body"
    file.write_text(json.dumps(body))
    return curl(
        *("-L", "-H", "Content-Type: application/json", "-H", "Accept: application/json"),
        *("-H", "Authorization: Bearer TERM", "--max-time", "30", "-d", f"@{file}"),
        f"{server.url}/v1/completions",
    )


def test_minuet_reads_a_stream_line_by_line(server: Running, tmp_path: Path) -> None:
    body = {"model": "builtin", "stream": True, "prompt": PROMPT, "temperature": 0}
    done = minuet(server, {**body, "max_tokens": 8}, tmp_path)
    assert done.returncode == 0, done.stderr
    text = ""
    for line in done.stdout.split("\n"):  # its stream_decode: what is no JSON is left out
        try:
            part = json.loads(line.removeprefix("data:"))
        except ValueError:
            continue
        text += part["choices"][0]["text"]
    assert text == greedy(server, max_length=8)


def test_minuet_shows_what_is_wrong(server: Running, tmp_path: Path) -> None:
    body = {"model": "builtin", "stream": True, "prompt": PROMPT, "suffix": "\nx = 1\n"}
    done = minuet(server, body, tmp_path)
    # It goes by curl's exit code, not by the status, and shows what has "error" in it.
    assert done.returncode == 0
    assert "suffix" in json.loads(done.stdout)["error"]["message"]
