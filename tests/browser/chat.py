"""The chat page as its reader handles it."""

from playwright.sync_api import ConsoleMessage, Locator, Page, expect


class Chat:
    """One open page.

    Attributes:
        crashes: Uncaught exceptions so far.
        problems: Console errors and warnings so far.
        requests: Addresses the page asked for so far.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.crashes: list[str] = []
        self.problems: list[str] = []
        self.requests: list[str] = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.crashes.append(error.stack or str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def open(self, url: str) -> None:
        """Load the page and wait until it knows its models."""
        self.page.goto(url)
        self.page.locator("#model:enabled").wait_for()

    @property
    def draft(self) -> Locator:
        return self.page.locator("#draft")

    @property
    def send_button(self) -> Locator:
        return self.page.locator("#send")

    @property
    def stop_button(self) -> Locator:
        return self.page.locator("#stop")

    @property
    def answers(self) -> Locator:
        return self.page.locator(".answer .prose")

    @property
    def last_answer(self) -> Locator:
        return self.answers.last

    @property
    def last_note(self) -> Locator:
        return self.page.locator(".answer .note").last

    @property
    def health(self) -> Locator:
        return self.page.locator("#health-text")

    def send(self, text: str) -> None:
        """Send without waiting for the answer."""
        self.draft.fill(text)
        self.send_button.click()

    def ask(self, text: str) -> None:
        """Send and wait until the answer is over."""
        self.send(text)
        expect(self.send_button).to_be_visible()

    def open_settings(self) -> None:
        self.page.get_by_role("button", name="Settings", exact=True).click()

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)
