"""One browser for all of these tests; a fresh tab and a fresh fake server for each."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from .chat import Chat
from .fake_server import FakeServer, Stage

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TIMEOUT_MS = 10_000


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A headless Chromium.

    For this package and not for the session: playwright's event loop would be in the way of the
    asynchronous tests that follow.
    """
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        pytest.skip(f"no browser found: none of {', '.join(CHROMIUM)} is on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def stage() -> Iterator[tuple[Stage, str]]:
    """The port of all fakes, and its address."""
    stage = Stage()
    with stage.open() as url:
        yield stage, url


@pytest.fixture
def server(stage: tuple[Stage, str]) -> Iterator[FakeServer]:
    """A fake of its own for each test."""
    open_stage, url = stage
    open_stage.fake = fake = FakeServer(url)
    yield fake
    fake.release.set()


@pytest.fixture(scope="package")
def profile(browser: Browser) -> Iterator[BrowserContext]:
    """An English desktop; the page keeps its memory in a tab, so each test takes a new tab."""
    with _profile(browser) as profile:
        yield profile


@pytest.fixture
def chat(profile: BrowserContext, server: FakeServer) -> Iterator[Chat]:
    """The page in a new tab, ready to send."""
    if not profile.pages:
        # A tab that stays keeps the browser's process for this site alive: half the time to open.
        profile.new_page().goto(f"{server.url}/page/icon.svg")
    with _chat(profile, server) as chat:
        yield chat


@pytest.fixture
def open_chat(browser: Browser, server: FakeServer) -> Iterator[Callable[..., Chat]]:
    """Open the page in a profile of its own; keywords go to ``Browser.new_context``."""
    with ExitStack() as stack:

        def open_in_new_profile(**options: Any) -> Chat:
            profile = stack.enter_context(_profile(browser, **options))
            return stack.enter_context(_chat(profile, server))

        yield open_in_new_profile


@contextmanager
def _profile(browser: Browser, **options: Any) -> Iterator[BrowserContext]:
    profile = browser.new_context(**{"locale": "en-US", **options})
    profile.set_default_timeout(TIMEOUT_MS)
    yield profile
    profile.close()


@contextmanager
def _chat(profile: BrowserContext, server: FakeServer) -> Iterator[Chat]:
    chat = Chat(profile.new_page())
    chat.open(server.url)
    yield chat
    chat.page.close()
    assert chat.crashes == []
