"""Which requests belong together: those that find the beginning of their prompt with one replica.

A replica has in its prefix cache what it has completed itself. Whoever types in one file asks again
and again with nearly the same prompt, whose beginning stays as it is: requests with the same key go
to the same replica.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

SESSION_HEADER = b"x-session-id"
# OpenAI's fields for it: `prompt_cache_key` has replaced `user`.
SESSION_FIELDS = ("prompt_cache_key", "user")
PROMPT_FIELDS = ("prompt", "inputs")  # of OpenAI's and Ollama's, and of TGI's

# Characters (or tokens) of a prompt that tell it from others: as many as it has, of these. The most
# is more than a licence: with 256, files under the same one all came to one replica. A prompt that
# grows beyond one of them is another one, but had little to lose by then; what is written further
# down changes nothing.
BEGINNINGS = (1024, 256, 64)

Headers = Iterable[tuple[bytes, bytes]]


def key(client: str, headers: Headers, body: bytes) -> str:
    """A word that is the same for requests that belong together, and says nothing of them.

    That is the session, where the request names one. Else it is who asks, by address and key, and
    how the prompt begins: the address may be a proxy's, and what many prompts begin with, such as a
    licence, should not bring all of them to one replica.

    Args:
        client: the address that it comes from.
        headers: of the request, their names in lower case.
        body: of the request; JSON, if it is to be looked at.
    """
    named = dict(headers)
    asked = _object(body)
    session: Any = named.get(SESSION_HEADER, b"").decode("latin-1")
    session = session or next((asked[name] for name in SESSION_FIELDS if asked.get(name)), None)
    if isinstance(session, str):
        return _word("session", session)
    who = [named.get(name, b"").decode("latin-1") for name in (b"authorization", b"api-key")]
    return _word(client, *who, _beginning(asked))


def _object(body: bytes) -> Mapping[str, Any]:
    """A JSON object; empty if it is none: what answers it says what is wrong."""
    try:
        found = json.loads(body) if body else None
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def _beginning(asked: Mapping[str, Any]) -> str:
    """How the first prompt begins; "" if it is too short for a prefix to be kept, or is none."""
    prompt: Any = next((asked[name] for name in PROMPT_FIELDS if asked.get(name)), "")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if not isinstance(prompt, (str, list)):
        return ""
    length = next((length for length in BEGINNINGS if len(prompt) >= length), 0)
    return str(prompt[:length])


def _word(*parts: str) -> str:
    text = "\0".join(parts).encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=16).hexdigest()
