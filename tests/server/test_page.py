from typing import Any

import pytest
from fakes import ScriptedEngine


async def test_the_page_may_run_only_its_own_scripts(connect: Any) -> None:
    response = await connect(ScriptedEngine()).get("/")

    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "<script>" not in response.text


async def test_its_parts_are_served_with_their_types(connect: Any) -> None:
    client = connect(ScriptedEngine())

    script, style = await client.get("/page/app.js"), await client.get("/page/style.css")

    assert script.headers["content-type"].startswith("text/javascript")
    assert style.headers["content-type"].startswith("text/css")
    assert script.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path", ["/page/", "/page/../page.py", "/page/%2e%2e/page.py", "/page/nothing.js", "/page//etc"]
)
async def test_nothing_else_is_served(connect: Any, path: str) -> None:
    assert (await connect(ScriptedEngine()).get(path)).status_code == 404
