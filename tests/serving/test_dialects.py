"""What other clients speak, as they send it: by raw HTTP, each body from the client's own code."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import httpx
import pytest
from running_server import PATIENCE, Running, wait_until

from paddlenlp_codegen_task.decoding.events import Forward
from paddlenlp_codegen_task.serving.settings import Settings
from paddlenlp_codegen_task.serving.tgi import Tokens

PROMPT = "def add(a, b):\n    "
LLM_LS = {"User-Agent": "llm-ls/0.5.3; rust/unknown; ide/VSCode"}
TGI = ["/generate", "/generate_stream", "/", "/models/Salesforce/codegen-350M-mono"]


def greedy(server: Running, prompt: str = PROMPT, **options: Any) -> str:
    """What the generator itself says."""
    options = {"decode_strategy": "greedy_search", "truncation": None, **options}
    [[completion]] = server.generator.generate([prompt], **options)
    return completion.text


def events(text: str) -> list[Any]:
    """The JSON of a stream's events, without what ends it."""
    found = [line[len("data: ") :] for line in text.splitlines() if line]
    assert text.endswith("\n\n")
    return [json.loads(one) for one in found if one != "[DONE]"]


def lines(text: str) -> list[Any]:
    """The JSON of each line."""
    return [json.loads(line) for line in text.splitlines()]


# FauxPilot and Copilot


def test_fauxpilots_plugin_is_answered_at_once(server: Running) -> None:
    body = {"model": "fastertransformer", "prompt": PROMPT, "max_tokens": 12, "stop": []}
    answer = server.post({**body, "temperature": 0}, "/v1/engines/codegen/completions")
    assert answer.headers["content-type"] == "application/json"
    [choice] = answer.json()["choices"]
    assert choice["text"] == greedy(server, max_length=12)


def test_fauxpilots_inline_completion_ends_with_the_line(server: Running) -> None:
    body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "stop": ["\n"]}
    answer = server.post(body, "/v1/engines/codegen/completions").json()
    [choice] = answer["choices"]
    assert choice["text"] == greedy(server, max_length=12).split("\n")[0]
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("engine", ["codegen", "copilot-codex", "gpt-4o-copilot"])
def test_copilot_streams_whatever_its_suffix(server: Running, engine: str) -> None:
    body = {
        "prompt": PROMPT,
        "suffix": "\n\nprint(add(1, 2))\n",
        "max_tokens": 12,
        "temperature": 0,
        "top_p": 1,
        "n": 1,
        "stop": ["\ndef ", "\nclass ", "\nif ", "\n\n#"],
        "nwo": "owner/name",
        "logprobs": 2,
        "stream": True,
        "extra": {"language": "python", "next_indent": 0, "trim_by_indentation": True},
    }
    answer = server.post(body, f"/v1/engines/{engine}/completions")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n")
    parts = events(answer.text)
    text = "".join(part["choices"][0]["text"] for part in parts)
    assert text == greedy(server, max_length=12, stop=body["stop"])
    assert len({part["id"] for part in parts}) == 1  # FauxPilot made a new one for each
    assert parts[-1]["choices"][0]["finish_reason"] in ("stop", "length")


def test_a_suffix_is_an_error_elsewhere(server: Running) -> None:
    answer = server.post({"prompt": PROMPT, "suffix": "x"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "suffix"


def test_copilots_token(server: Running) -> None:
    answer = server.get("/copilot_internal/v2/token", headers={"Authorization": "token gho_x"})
    assert answer.json() == {"token": "1", "expires_at": 2600000000, "refresh_in": 900}


# llm-ls at /v1/completions, and Tabby


def test_llm_ls_reads_errors_as_detail(server: Running) -> None:
    body = {"prompt": PROMPT, "model": "codegen", "stream": False, "temperature": -1}
    answer = server.post(body, headers=LLM_LS)
    assert answer.status_code == 400
    [detail] = answer.json()["detail"]
    assert set(detail) == {"loc", "msg", "type"}
    assert detail["loc"] == "temperature"  # one word: it cannot read FastAPI's list
    assert "detail" not in server.post(body).json()


def test_llm_ls_reads_choices_and_its_parameters_are_ignored(server: Running) -> None:
    body = {
        "prompt": PROMPT,
        "model": "codegen",
        "stream": False,
        "max_tokens": 8,
        "temperature": 0,
        "parameters": {"max_new_tokens": 60, "temperature": 0.2, "top_p": 0.95},
    }
    [choice] = server.post(body, headers=LLM_LS).json()["choices"]
    assert choice["text"] == greedy(server, max_length=8)


def test_tabby_reads_every_event_up_to_a_finish_reason(server: Running) -> None:
    body = {
        "model": "codegen",
        "prompt": PROMPT,
        "suffix": None,
        "max_tokens": 12,
        "temperature": 0.0,
        "stream": True,
        "presence_penalty": 0.0,
    }
    text, done = "", False
    for part in events(server.post(body).text):
        choice = part["choices"][0]
        assert isinstance(choice["text"], str)
        if not done:
            text += choice["text"]
        done = done or choice["finish_reason"] is not None
    assert done
    assert text == greedy(server, max_length=12)


# text-generation-inference


def test_tgi_generates(server: Running) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 8}}
    answer = server.post(body, "/generate").json()
    assert answer == {"generated_text": greedy(server, max_length=8)}


@pytest.mark.parametrize("path", ["/", "/models/Salesforce/codegen-350M-mono"])
def test_the_hosted_form_is_a_list_with_the_prompt(server: Running, path: str) -> None:
    parameters: dict[str, Any] = {"max_new_tokens": 8}
    [answer] = server.post({"inputs": PROMPT, "parameters": parameters}, path).json()
    assert answer["generated_text"] == PROMPT + greedy(server, max_length=8)
    parameters["return_full_text"] = False
    [answer] = server.post({"inputs": PROMPT, "parameters": parameters}, path).json()
    assert answer["generated_text"] == greedy(server, max_length=8)


def test_llm_ls_without_a_request_body_sends_parameters_within_parameters(server: Running) -> None:
    body = {"inputs": PROMPT, "parameters": {"parameters": {"return_full_text": False}}}
    answer = server.post(body, "/generate", headers=LLM_LS).json()
    assert answer["generated_text"] == greedy(server, max_length=100)


def test_tgis_details_are_those_of_the_text(server: Running) -> None:
    parameters = {"max_new_tokens": 8, "details": True, "top_n_tokens": 2}
    answer = server.post({"inputs": PROMPT, "parameters": parameters}, "/generate").json()
    details = answer["details"]
    assert "".join(token["text"] for token in details["tokens"]) == answer["generated_text"]
    assert details["generated_tokens"] == len(details["tokens"])
    assert details["finish_reason"] in ("length", "eos_token")
    for token, top in zip(details["tokens"], details["top_tokens"], strict=True):
        assert [one["logprob"] for one in top] == sorted(
            (one["logprob"] for one in top), reverse=True
        )
        assert len(top) == 2
        assert token["id"] == top[0]["id"]  # it was greedy


def test_tgis_stop_sequence_is_told_and_left_out(server: Running) -> None:
    parameters = {"max_new_tokens": 30, "details": True, "stop": ["\n"]}
    answer = server.post({"inputs": PROMPT, "parameters": parameters}, "/generate").json()
    assert answer["generated_text"] == greedy(server, max_length=30).split("\n")[0]
    assert answer["details"]["finish_reason"] == "stop_sequence"
    assert answer["details"]["generated_tokens"] == len(answer["details"]["tokens"])


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_new_tokens": 3},
        {"max_new_tokens": 60},
        {"max_new_tokens": 30, "stop": ["\n"]},
        {"max_new_tokens": 30, "stop": ["n a"]},  # within a token
        {"max_new_tokens": 30, "stop": ["re"]},  # at once
        {"max_new_tokens": 40, "do_sample": True, "seed": 3, "temperature": 1.5},
    ],
)
@pytest.mark.parametrize("details", [True, False])
def test_tgis_stream_is_its_text_token_by_token(
    server: Running, parameters: dict[str, Any], details: bool
) -> None:
    body = {"inputs": PROMPT, "parameters": {**parameters, "details": details}}
    whole = server.post(body, "/generate").json()
    answer = server.post(body, "/generate_stream")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "[DONE]" not in answer.text
    *others, last = events(answer.text)
    assert "".join(one["token"]["text"] for one in [*others, last]) == whole["generated_text"]
    assert [one["index"] for one in [*others, last]] == list(range(1, len(others) + 2))
    assert all("generated_text" not in one for one in others)
    assert last["generated_text"] == whole["generated_text"]
    if details:
        for name in ("finish_reason", "generated_tokens"):
            assert last["details"][name] == whole["details"][name]
        assert last["details"]["input_length"] == len(server.generator.tokenizer.encode(PROMPT))
        ids = [token["id"] for token in whole["details"]["tokens"]]
        assert [one["token"]["id"] for one in [*others, last]][: len(ids)] == ids
    else:
        assert last["details"] is None


@pytest.mark.parametrize("path", ["/", "/models/Salesforce/codegen-350M-mono"])
def test_the_hosted_form_streams_too(server: Running, path: str) -> None:
    parameters = {"max_new_tokens": 6, "return_full_text": False}
    answer = server.post({"inputs": PROMPT, "parameters": parameters, "stream": True}, path)
    assert events(answer.text)[-1]["generated_text"] == greedy(server, max_length=6)


def test_tgi_samples_when_any_of_its_parameters_asks_for_it(server: Running) -> None:
    def texts(**parameters: Any) -> set[str]:
        found = set()
        for seed in range(6):
            body = {"inputs": "x = ", "parameters": {"max_new_tokens": 6, "seed": seed}}
            body["parameters"].update(parameters)  # type: ignore[union-attr]
            found.add(server.post(body, "/generate").json()["generated_text"])
        return found

    assert len(texts()) == 1
    for asked in ({"do_sample": True}, {"temperature": 1.2}, {"top_k": 50}, {"top_p": 0.95}):
        assert len(texts(**asked)) > 1


def test_tgi_ranks_by_best_of(server: Running) -> None:
    parameters = {"max_new_tokens": 6, "best_of": 3, "do_sample": True, "details": True}
    answer = server.post({"inputs": PROMPT, "parameters": parameters}, "/generate")
    assert answer.status_code == 200, answer.text


def test_tgi_truncates(server: Running) -> None:
    parameters = {"max_new_tokens": 6, "truncate": 4}
    answer = server.post({"inputs": "x = 1\n" + PROMPT, "parameters": parameters}, "/generate")
    tokenizer = server.generator.tokenizer
    kept = tokenizer.decode(tokenizer.encode("x = 1\n" + PROMPT)[-4:])
    assert answer.json()["generated_text"] == greedy(server, kept, max_length=6)


@pytest.mark.parametrize("path", TGI)
@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"temperature": 0}, "parameters.temperature"),
        ({"temperature": "hot"}, "parameters.temperature"),
        ({"top_p": 1.5}, "parameters.top_p"),
        ({"top_k": 0}, "parameters.top_k"),
        ({"max_new_tokens": 0}, "parameters.max_new_tokens"),
        ({"max_new_tokens": 100000}, "max_new_tokens"),
        ({"stop": "x"}, "parameters.stop"),
        ({"stop": [""]}, "stop"),
        ({"seed": -1}, "parameters.seed"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 1000, "do_sample": True}, "best_of"),
        ({"typical_p": 0.9}, "typical_p"),
        ({"watermark": True}, "watermark"),
        ({"decoder_input_details": True}, "decoder_input_details"),
        ({"grammar": {"type": "regex", "value": "(a*)*b"}}, "grammar"),
        ({"adapter_id": "x"}, "adapter_id"),
        ([], "parameters"),
    ],
)
def test_tgi_refuses(server: Running, path: str, parameters: Any, named: str) -> None:
    body = {"inputs": PROMPT, "parameters": parameters, "stream": path != "/generate"}
    answer = server.post(body, path)
    assert answer.status_code == 422
    assert answer.json()["error_type"] == "validation"
    assert named in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize("path", TGI)
@pytest.mark.parametrize("body", [{}, {"inputs": ""}, {"inputs": 3}, {"inputs": "x " * 3000}, []])
def test_tgi_refuses_inputs(server: Running, path: str, body: Any) -> None:
    answer = server.post(body, path)
    assert answer.status_code == 422
    assert set(answer.json()) == {"error", "error_type"}


def test_tgis_info(server: Running) -> None:
    info = server.get("/info").json()
    assert info["model_id"] == "builtin"
    assert info["max_total_tokens"] == server.generator.config.n_positions


@pytest.mark.parametrize("cut", [0, 1, 3, 6, 9, 10, 14])
def test_tokens_of_a_text_make_it_up_wherever_it_is_cut(cut: int) -> None:
    class Tokenizer:
        data = (b"ab", b"", b"\xe2\x82", b"\xacc", b"\n\n", b"d\xff", b"\xc3", b"e")

        def token_bytes(self, token_id: int) -> bytes:
            return self.data[token_id]

    text = "ab€c\n\nd\ufffd\ufffde"[:cut]
    follows = Tokens(Tokenizer(), 0)
    found = []
    for token_id in range(8):
        follows.add([{token_id: -1.0}])
        found += follows.settle(text[token_id : token_id + 1])
    found += follows.settle(text[8:]) + follows.end()
    assert "".join(token["text"] for token, _ in found) == text
    assert [token["id"] for token, _ in found] == list(range(8))
    assert [token["special"] for token, _ in found] == [token_id == 1 for token_id in range(8)]


# Ollama


def ollama(**options: Any) -> dict[str, Any]:
    """A body, greedy unless it is told otherwise."""
    body: dict[str, Any] = {"model": "codegen", "prompt": PROMPT}
    body.update(options)
    body["options"] = {"temperature": 0, "num_predict": 8, **options.get("options", {})}
    return body


def test_ollama_streams_lines_by_default(server: Running) -> None:
    answer = server.post(ollama(), "/api/generate")
    assert answer.headers["content-type"] == "application/x-ndjson"
    *parts, last = lines(answer.text)
    assert "".join(part["response"] for part in parts) == greedy(server, max_length=8)
    assert not any(part["done"] for part in parts)
    # litellm takes no text from the last line.
    assert (last["done"], last["response"]) == (True, "")
    assert last["done_reason"] in ("stop", "length")
    assert last["prompt_eval_count"] == len(server.generator.tokenizer.encode(PROMPT))
    assert 0 < last["eval_count"] <= 8
    assert last["total_duration"] >= last["prompt_eval_duration"] > 0
    assert all(part["model"] == "codegen" for part in [*parts, last])


def test_ollama_answers_at_once(server: Running) -> None:
    answer = server.post(ollama(stream=False), "/api/generate")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["response"] == greedy(server, max_length=8)
    assert answer.json()["done"]


def test_llm_ls_asks_ollama(server: Running) -> None:
    body = ollama(stream=False)
    answer = server.post(body, "/api/generate", headers=LLM_LS).json()
    assert answer["response"] == greedy(server, max_length=8)
    body["options"]["temperature"] = -1
    answer = server.post(body, "/api/generate", headers=LLM_LS)
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]


@pytest.mark.parametrize("most", [-2, -1, 0, None])
def test_ollama_goes_to_the_end(server: Running, most: int | None) -> None:
    answer = server.post(ollama(options={"num_predict": most}), "/api/generate")
    text = "".join(part["response"] for part in lines(answer.text))
    assert text.startswith(greedy(server, max_length=8))
    assert lines(answer.text)[-1]["done_reason"] == "stop"


def test_ollama_drops_a_prompts_beginning(server: Running) -> None:
    tokenizer, context = server.generator.tokenizer, server.generator.config.n_positions
    prompt = "x = 1\n" * 600 + PROMPT
    body = ollama(prompt=prompt, stream=False)
    answer = server.post(body, "/api/generate").json()
    assert answer["prompt_eval_count"] == context - 8
    kept = tokenizer.decode(tokenizer.encode(prompt)[-(context - 8) :])
    assert answer["response"] == greedy(server, kept, max_length=8)
    answer = server.post({**body, "truncate": False}, "/api/generate")
    assert answer.status_code == 400
    assert "num_predict" in answer.json()["error"]


def test_ollama_leaves_half_of_the_context_where_no_number_is_given(server: Running) -> None:
    context = server.generator.config.n_positions
    body = ollama(prompt="x = 1\n" * 600, stream=False)
    body["options"].update(num_predict=-1, stop=["\n"])
    answer = server.post(body, "/api/generate").json()
    assert answer["prompt_eval_count"] == context - context // 2


def test_ollamas_options_count(server: Running) -> None:
    seeded = ollama(stream=False, options={"temperature": 1.2, "seed": 5, "num_predict": 20})
    one, two = (server.post(seeded, "/api/generate").json()["response"] for _ in range(2))
    assert one == two
    stopped = ollama(stream=False, options={"stop": ["\n"], "num_predict": 30})
    text = server.post(stopped, "/api/generate").json()["response"]
    assert text == greedy(server, max_length=30).split("\n")[0]


def test_ollamas_logprobs(server: Running) -> None:
    answer = server.post(
        ollama(stream=False, logprobs=True, top_logprobs=2), "/api/generate"
    ).json()
    assert "".join(one["token"] for one in answer["logprobs"]) == answer["response"]
    for one in answer["logprobs"]:
        assert one["top_logprobs"][0] == {"token": one["token"], "logprob": one["logprob"]}
        assert len(one["top_logprobs"]) == 2
    parts = lines(server.post(ollama(logprobs=True), "/api/generate").text)
    for part in parts[:-1]:
        assert "".join(one["token"] for one in part["logprobs"]) == part["response"]


@pytest.mark.parametrize(("keep_alive", "reason"), [(None, "load"), (0, "unload"), ("5m", "load")])
def test_ollama_loads_with_an_empty_prompt(server: Running, keep_alive: Any, reason: str) -> None:
    answer = server.post({"model": "codegen", "keep_alive": keep_alive}, "/api/generate").json()
    assert (answer["response"], answer["done"], answer["done_reason"]) == ("", True, reason)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"options": {"temperature": "hot"}}, "options.temperature"),
        ({"options": {"stop": 3}}, "stop"),
        ({"options": {"top_p": 0}}, "options.top_p"),
        ({"options": {"num_predict": 5000}, "truncate": False}, "num_predict"),
        ({"options": {"num_predict": 5000}}, "num_predict"),
        ({"suffix": "x"}, "suffix"),
        ({"system": "You are a poet."}, "system"),
        ({"template": "[INST] {{ .Prompt }} [/INST]"}, "template"),
        ({"context": [1, 2]}, "context"),
        ({"images": ["aGk="]}, "images"),
        ({"format": "json"}, "format"),
        ({"think": True}, "think"),
        ({"prompt": 3}, "prompt"),
        ({"top_logprobs": 21}, "top_logprobs"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_ollama_refuses(server: Running, body: dict[str, Any], named: str, stream: bool) -> None:
    answer = server.post({**ollama(stream=stream), **body}, "/api/generate")
    assert answer.status_code == 400
    assert named in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize("extra", [{"template": "{{.Prompt}}"}, {"raw": True}, {"system": ""}])
def test_ollama_takes_what_changes_nothing(server: Running, extra: dict[str, Any]) -> None:
    answer = server.post(ollama(stream=False, **extra), "/api/generate")
    assert answer.json()["response"] == greedy(server, max_length=8)


def test_ollama_tells_of_its_model(server: Running) -> None:
    [model] = server.get("/api/tags").json()["models"]
    assert model["name"] == "builtin"
    assert len(model["digest"]) == 64
    for body in ({"model": "builtin"}, {"name": "builtin"}):
        shown = server.post(body, "/api/show").json()
        context = server.generator.config.n_positions
        assert shown["model_info"]["codegen.context_length"] == context
        assert shown["capabilities"] == ["completion"]
    assert server.get("/api/version").json()["version"]


# All of them


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/engines/codegen/completions", {"prompt": PROMPT}),
        *((path, {"inputs": PROMPT}) for path in TGI),
        ("/api/generate", {"model": "m", "prompt": PROMPT}),
    ],
)
def test_no_dialect_goes_round_the_keys(
    serve: Callable[..., Running], path: str, body: dict[str, Any]
) -> None:
    server = serve(Settings(api_keys=("secret",)))
    refused = server.post(body, path)
    assert refused.status_code == 401
    assert "key" in json.dumps(refused.json()["error"])
    assert server.get("/").status_code == 200
    allowed = server.post(body, path, headers={"Authorization": "Bearer secret"})
    assert allowed.status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "error_type"),
    [
        ("/generate", {"inputs": PROMPT, "parameters": {"best_of": 2, "do_sample": True}}, 422, 1),
        ("/generate", {"inputs": PROMPT, "parameters": {}}, 429, 1),
        ("/generate_stream", {"inputs": PROMPT}, 429, 1),
        ("/api/generate", {"model": "m", "prompt": PROMPT}, 429, 0),
        ("/v1/engines/codegen/completions", {"prompt": PROMPT, "stream": True}, 429, 0),
    ],
)
def test_a_full_server_says_so_in_the_dialect(
    serve: Callable[..., Running], path: str, body: dict[str, Any], status: int, error_type: int
) -> None:
    server = serve(Settings())
    server.app.state.engine.max_rows = 1
    server.app.state.engine.rows = 1  # as if one ran
    answer = server.post(body, path)
    assert answer.status_code == status
    if status == 429:
        assert answer.headers["retry-after"]
        if error_type:
            assert answer.json()["error_type"] == "overloaded"


def given_up(server: Running) -> float:
    """Sequences whose clients have gone."""
    found = re.findall(
        r'_total{[^}]*finished_reason="abort"[^}]*} (\S+)', server.get("/metrics").text
    )
    return sum(map(float, found))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/",
            {
                "inputs": PROMPT,
                "parameters": {"max_new_tokens": 900, "temperature": 2.0, "seed": 1},
            },
        ),
        (
            "/api/generate",
            {
                "model": "m",
                "prompt": PROMPT,
                "options": {"num_predict": 900, "temperature": 2, "seed": 1, "top_p": 1},
            },
        ),
    ],
)
def test_a_client_that_goes_frees_its_place(
    server: Running, path: str, body: dict[str, Any], stream: bool
) -> None:
    before, engine = given_up(server), server.app.state.engine
    wait_until(lambda: not engine.rows)
    body = {**body, "stream": stream}

    def slow(_: Forward) -> None:  # the text may end early, and must not before the client goes
        time.sleep(0.2)

    server.generator.add_step_hook(slow)
    try:
        if stream:
            with httpx.stream("POST", server.url + path, json=body, timeout=PATIENCE) as answer:
                next(answer.iter_lines())
        else:
            url = httpx.URL(server.url)
            with closing(http.client.HTTPConnection(url.host, url.port)) as connection:
                connection.request("POST", path, json.dumps(body))
                wait_until(lambda: engine.rows)
        wait_until(lambda: not engine.rows)
    finally:
        server.generator.remove_step_hook(slow)
    assert given_up(server) == before + 1
