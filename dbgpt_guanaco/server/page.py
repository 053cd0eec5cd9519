"""The chat page at ``/``: a few static files, read once.

The files are held in memory under the names they have, so no request can name any other.
"""

from pathlib import Path

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import Response

FOLDER = Path(__file__).parent / "page"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
# The page runs no script but its own and talks to no server but its own, whatever a model's
# answer contains.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def create_router(folder: Path = FOLDER) -> APIRouter:
    """Return the routes of the page, its files read into memory."""
    files = {
        path.relative_to(folder).as_posix(): (path.read_bytes(), MEDIA_TYPES[path.suffix])
        for path in sorted(folder.rglob("*"))
        if path.suffix in MEDIA_TYPES
    }
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def index() -> Response:
        return _answer("index.html")

    @router.get("/page/{name:path}")
    async def asset(name: str) -> Response:
        return _answer(name)

    def _answer(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, "no such file")
        content, media_type = files[name]
        return Response(content, media_type=media_type, headers=HEADERS)

    return router
