"""The page to try the server with: one file, which asks nobody but the server."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi import FastAPI, Response


def add_routes(app: FastAPI) -> None:
    """Serve the page at `/`."""
    html = (Path(__file__).parent / "index.html").read_bytes()
    headers = {
        "Content-Security-Policy": _policy(html.decode()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(html, media_type="text/html", headers=headers)


def _policy(html: str) -> str:
    """What the page may do: run its own script, have its own style, and ask its own server."""

    def allowed(tag: str) -> str:
        [content] = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.S)
        digest = hashlib.sha256(content.encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    return (
        f"default-src 'none'; script-src {allowed('script')}; style-src {allowed('style')}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
