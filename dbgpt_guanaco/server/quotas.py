"""How much each key may use: answers at a time, and tokens a minute.

What a request will cost is known only when it is over. So it is let in while its key has tokens
left, pays at its end for what it has used, and the next one waits for what is owed. A prompt costs
its tokens as soon as its answer is waited for, however long that is.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable
from typing import cast

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from dbgpt_guanaco.errors import InvalidRequestError, QuotaExceededError
from dbgpt_guanaco.server.exchange import KEY, REFUSAL, Exchange
from dbgpt_guanaco.server.keys import Caller
from dbgpt_guanaco.server.refusals import refusal
from dbgpt_guanaco.settings import AccessSettings

# How soon a place of one's own may be free again, nobody knows.
RETRY_PLACE_S = 1


class Quota:
    """What one key uses.

    Args:
        settings: How much that may be.
        clock: Seconds that never go back.
    """

    def __init__(self, settings: AccessSettings, clock: Callable[[], float]) -> None:
        self._most_running, self._clock = settings.key_max_running, clock
        self._per_minute = settings.key_tokens_per_minute
        self._running = 0
        self._left = float(self._per_minute or 0)
        self._filled_at = clock()

    def begin(self) -> None:
        """Let a request in; it has one place. Who does gives it back by ``end``.

        Raises:
            QuotaExceededError: The key has no place left, or no tokens.
        """
        self._check_places(self._running, 1)
        if self._per_minute is not None:
            self._refill(self._per_minute)
            if self._left < 1:
                wait_s = math.ceil((1 - self._left) * 60 / self._per_minute)
                raise QuotaExceededError(
                    f"the {self._per_minute} tokens a minute of this key are used up; "
                    f"try again in {wait_s} s",
                    wait_s,
                    "tokens_per_minute",
                )
        self._running += 1

    def reserve(self, answers: int) -> None:
        """Take the places that a request with one needs for so many answers.

        Raises:
            InvalidRequestError: The key may never have that many.
            QuotaExceededError: It has none left now.
        """
        if self._most_running is not None and answers > self._most_running:
            raise InvalidRequestError(
                "n", f"a key may have no more than {self._most_running} answers running"
            )
        self._check_places(self._running - 1, answers)
        self._running += answers - 1

    def end(self, tokens: int, places: int = 1) -> None:
        """Give places back, and pay; more may be owed than there is."""
        self._running -= places
        self._left -= tokens

    def _check_places(self, held: int, wanted: int) -> None:
        if self._most_running is not None and held + wanted > self._most_running:
            raise QuotaExceededError(
                f"this key may have {self._most_running} answers running; {held} run, and {wanted} "
                "more were asked for",
                RETRY_PLACE_S,
                "running",
            )

    def _refill(self, per_minute: int) -> None:
        now = self._clock()
        gained = (now - self._filled_at) * per_minute / 60
        self._left, self._filled_at = min(self._left + gained, per_minute), now


class Quotas:
    """ASGI middleware that holds each key to what it may use; the admin's to nothing."""

    def __init__(
        self,
        app: ASGIApp,
        settings: AccessSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._of = defaultdict[str, Quota](lambda: Quota(settings, clock))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request run as one of its key's."""
        if scope["type"] != "http" or scope["method"] != "POST" or not _is_held(Request(scope)):
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        quota = self._of[cast(Caller, request.state.caller).identity]
        try:
            quota.begin()
        except QuotaExceededError as error:
            scope[REFUSAL] = error.limit
            await refusal(request, error)(scope, receive, send)
            return
        exchange, places = cast(Exchange, scope[KEY]), 1

        def reserve(answers: int) -> None:
            nonlocal places
            try:
                quota.reserve(answers)
            except QuotaExceededError as error:
                scope[REFUSAL] = error.limit
                raise
            places = answers

        exchange.reserve = reserve
        try:
            await self._app(scope, receive, send)
        finally:
            quota.end(_cost(exchange), places)


def _is_held(request: Request) -> bool:
    caller = cast(Caller, request.state.caller)
    return caller.has_key and not caller.is_admin


def _cost(exchange: Exchange) -> int:
    """Return the tokens that were read and written, each answer with its prompt."""
    return sum(progress.usage.total_tokens for progress in exchange.asked)
