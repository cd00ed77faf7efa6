"""The page in a real browser: Debian's Chromium, driven by Playwright; the keyboard alone."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from running_server import PATIENCE, Running

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
HELLO = "def hello_world():"


@pytest.fixture(scope="module")
def browser_page(server: Running) -> Iterator[Page]:
    """The page, opened once; `page` empties it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(color_scheme="light").new_page()
        page.set_default_timeout(1000 * PATIENCE)
        yield page
        browser.close()


@pytest.fixture
def page(browser_page: Page, server: Running) -> Page:
    browser_page.goto(server.url)
    browser_page.evaluate("localStorage.clear()")
    browser_page.reload()
    return browser_page


def wait_for_ghost(page: Page) -> str:
    """What is suggested, once it is complete.

    The text before was inserted at once: of keys that come slowly, each may have its suggestion.
    """
    # By a selector: the page's policy forbids what Playwright evaluates while it waits.
    page.locator("#spoken:not(:empty)").wait_for(state="attached")
    return page.locator("#ghost").inner_text()


def value(page: Page) -> str:
    return page.locator("#text").input_value()


@in_chromium
def test_what_is_suggested_is_accepted_by_tab(page: Page):
    page.keyboard.insert_text(HELLO)  # the text has the focus
    suggested = wait_for_ghost(page)
    assert suggested.strip() == 'print("Hello World!")'
    assert value(page) == HELLO
    figures = page.locator("#figures").inner_text()
    assert re.match(r"first text after \d+ ms, \d+ tokens/s, \d+ tokens$", figures)
    page.keyboard.press("Tab")
    assert value(page) == HELLO + suggested
    page.keyboard.press("Control+z")
    assert value(page) == HELLO


@in_chromium
def test_what_is_typed_as_suggested_stays_suggested(page: Page):
    page.keyboard.insert_text(HELLO)
    suggested = wait_for_ghost(page)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.keyboard.press("Enter")  # which is how the suggestion begins
    page.keyboard.press("Escape")
    assert page.locator("#ghost").inner_text() == ""
    page.keyboard.type(suggested.strip("\n")[:6])
    assert value(page) == HELLO + "\n" + suggested.strip("\n")[:6]


@in_chromium
def test_a_word_is_accepted_alone(page: Page):
    page.keyboard.insert_text(HELLO)
    suggested = wait_for_ghost(page)
    page.keyboard.press("Control+ArrowRight")
    taken = value(page)[len(HELLO) :]
    assert taken.strip() == "print"
    assert taken + page.locator("#ghost").inner_text() == suggested


@in_chromium
def test_alternatives_are_stepped_through(page: Page):
    page.locator("[name=n]").fill("3")
    page.locator("[name=temperature]").fill("1")
    page.locator("#text").focus()
    page.keyboard.insert_text("x = ")
    shown = [wait_for_ghost(page)]
    for _ in range(2):
        page.keyboard.press("Alt+BracketRight")
        shown.append(page.locator("#ghost").inner_text())
    page.keyboard.press("Alt+BracketRight")
    assert page.locator("#ghost").inner_text() == shown[0]
    page.keyboard.press("Alt+BracketLeft")
    assert page.locator("#ghost").inner_text() == shown[2]
    page.keyboard.press("Tab")
    assert value(page) == "x = " + shown[2]


@in_chromium
def test_escape_and_tab_leave_the_text(page: Page):
    page.locator("#text").focus()
    page.keyboard.press("Tab")
    assert value(page) == "    "
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") != "text"


@in_chromium
def test_what_is_wrong_is_said(page: Page):
    page.locator("[name=max_tokens]").fill("100000")
    page.locator("#text").focus()
    page.keyboard.insert_text("x = ")
    page.wait_for_selector("#figures.wrong")
    assert "max_tokens must be below" in page.locator("#figures").inner_text()


@in_chromium
def test_text_is_never_markup(page: Page):
    page.locator("#text").fill("<img src=x onerror=alert(1)>")
    assert page.locator("#before").inner_text() == "<img src=x onerror=alert(1)>"
    assert page.locator("img").count() == 0


@in_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(page: Page, scheme: str):
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    colour = "getComputedStyle(document.body).backgroundColor"
    red = int(re.findall(r"\d+", page.evaluate(colour))[0])
    assert (red > 128) == (scheme == "light")


@in_chromium
def test_it_asks_nobody_but_its_server(page: Page, server: Running):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    page.keyboard.insert_text(HELLO)
    wait_for_ghost(page)
    assert len(asked) >= 3
    assert all(url.startswith(server.url) for url in asked)


def test_it_may_do_no_more_than_it_does(server: Running):
    answer = server.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in re.sub(r"https?://127\S*", "", answer.text)
