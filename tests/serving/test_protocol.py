"""OpenAI's completions API, field by field."""

from __future__ import annotations

from running_server import Running


def test_a_prompt_is_completed(server: Running) -> None:
    answer = server.post({"prompt": "def f(x):", "temperature": 0})
    assert answer.status_code == 200, answer.text
    [choice] = answer.json()["choices"]
    assert choice["text"]
