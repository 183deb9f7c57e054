"""The page at `/`: a few static files, and nothing that isn't known to everybody. Whatever it shows, it asks for with
the key."""

from __future__ import annotations

from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

# In the folder `page`; the first is served as `/`, the others by their names below `/static/`.
_MEDIA_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
_SHELL = "index.html"
_FILES = (_SHELL, "page.css", "page.js", "api.js", "chat.js", "crowd.js", "live.js", "timeline.js")
_NAME_BY_PATH = {"/" if name == _SHELL else f"/static/{name}": name for name in _FILES}
PAGE_PATHS = tuple(_NAME_BY_PATH)
_HEADERS = {
    # Nothing from elsewhere, nothing inline: even a text that looked like markup could not run.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


class PageApi:
    """Serves the files, read once."""

    def __init__(self) -> None:
        folder = resources.files("orcinus.server") / "page"
        self._body_by_path = {path: (folder / name).read_bytes() for path, name in _NAME_BY_PATH.items()}

    async def file(self, request: Request) -> Response:
        """GET / and /static/…: one of the files; the paths are a fixed list, so nothing else can be reached."""
        path: str = request.scope["path"]
        return Response(self._body_by_path[path], media_type=media_type_of(path), headers=_HEADERS)


def media_type_of(path: str) -> str:
    """Of what is served there."""
    return _MEDIA_TYPES[_NAME_BY_PATH[path].rpartition(".")[2]]
