"""Bodies that are wrong in all ways that a grammar of mistakes knows, to every dialect."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzzing.broken_bodies import BODIES, bodies
from fuzzing.checks import ADMIN_KEY, KEY, REQUESTS, Target, examples

EACH = REQUESTS // 2 // len(BODIES)
TYPES = st.sampled_from(
    3 * ["application/json"]
    + ["", "text/plain", "application/json; charset=utf-16", "multipart/form-data", "\xff",
       "application/x-www-form-urlencoded", "application/json;" * 50]
)  # fmt: skip
KEYS = st.sampled_from(
    8 * [f"Bearer {ADMIN_KEY}"] + [f"Bearer {KEY}", "", "Bearer", "Basic eA==", "Bearer \xff" * 9]
)
OTHERS = st.dictionaries(
    st.sampled_from(["Accept", "Content-Encoding", "X-Request-Id", "Origin", "Cookie", "Expect",
                     "DB-GPT-Trace-Span-Id", "Forwarded", "X-Forwarded-For", "Transfer-Mode"]),
    st.sampled_from(["", "*", "gzip", "null", "a" * 3000, "\xff\xfe", "x:y", "%00"]),
    max_size=2,
)  # fmt: skip


@pytest.mark.parametrize("path", BODIES)
def test_no_body_breaks_the_server(target: Target, path: str) -> None:
    @examples(EACH)
    @given(bodies(path), TYPES, KEYS, OTHERS)
    def send(body: bytes, kind: str, key: str, others: dict[str, str]) -> None:
        named = {"Content-Type": kind, "Authorization": key, **others}
        headers = {name: value.encode("latin-1") for name, value in named.items()}
        target.send("POST", path, content=body, headers=headers)

    send()


def test_requests_get_through(target: Target) -> None:
    """A grammar of which nothing is ever understood would find nothing behind the door."""
    answering = [
        path for path in BODIES if re.search("completions|generat|embed|token|controller", path)
    ]
    for path in answering:
        by_status = {s: n for (p, s), n in target.statuses.items() if p == path}
        assert by_status.get(200, 0) >= EACH / 50, (path, by_status)
