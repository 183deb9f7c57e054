"""Methods, paths, content types and encodings, header fields, and streams that nobody has begun."""

from __future__ import annotations

from cases import ANYTHING, CHAT, COMPLETIONS, JSON_TYPE, PROMPT, Case, encode

_BODY = encode(PROMPT)
_POSTED = (COMPLETIONS, CHAT, "/v1/embeddings", "/tokenize", "/detokenize", "/classify", "/score", "/rerank")
_GOT = ("/health", "/ready", "/load", "/version", "/metrics", "/openapi.json", "/v1/models", "/v1/live", "/")

_NO_PATHS = (
    "//",
    "//v1/models",
    "/v1//models",
    "/v1/completions/",
    "/v1/completions/x",
    "/health/",
    "/HEALTH",
    "/health%00",
    "/health%20",
    "/health%0d%0aX-Evil:%201",
    "/health;jsessionid=1",
    "/health.json",
    "/./health",
    "/../health",
    "/v1/../health",
    "/v1/%2e%2e/health",
    "/v1/%2e%2e%2fhealth",
    "/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/..%5c..%5cwindows",
    "/%c0%ae%c0%ae/etc/passwd",
    "/%ff%fe",
    "/%zz",
    "/%",
    "/static/",
    "/static/../app.py",
    "/static/%2e%2e/app.py",
    "/static/..%2fapp.py",
    "/static/%2e%2e/%2e%2e/%2e%2e/pyproject.toml",
    "/static/page.js%00.css",
    "/static/nothing.js",
    "/static//etc/passwd",
    "/.env",
    "/.git/config",
    "/favicon.ico",
    "/docs",
    "/redoc",
    "/admin",
    "/debug/pprof",
    "/v1",
    "/v1/",
    "/v2/models",
    "/v1/engines",
    "/v1/responses",
    "/v1/messages",
    "/v1/files",
    "/v1/images/generations",
    "/v1/audio/transcriptions",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/invocations",
    "/pause",
    "/sleep",
    "/wake_up",
    "/update_weights",
    "/reset_prefix_cache",
    "/abort_requests",
    "/start_profile",
    "/collective_rpc",
    "/v1/streams",
    "/v1/streams/",
    "/{{7*7}}",
    "/<script>",
    "/" + "a/" * 2000,
    "/" + "%41" * 1000,
)
_NO_MODELS = {
    "other": "gpt-4o",
    "nothing": "",
    "traversal": "../../etc/passwd",
    "encoded-traversal": "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "nul": "orcinus-tiny%00",
    "slash": "orcinus-tiny/",
    "url": "http://127.0.0.1:9/x",
    "not-utf-8": "%ff",
    "long": "m" * 5000,
}
_NO_STREAMS = {
    "word": "x",
    "ours-in-form": "cmpl-" + "0" * 32,
    "of-another-process": "cmpl-" + "0" * 30 + "ff",
    "chat": "chatcmpl-" + "f" * 32,
    "nul": "%00",
    "newline": "%0a",
    "not-utf-8": "%ff",
    "dots": "%2e%2e",
    "star": "*",
    "other-digits": "cmpl-" + "%d9%a1" * 32,
    "long": "s" * 5000,
}
_TYPES = {
    "none": None,
    "empty": "",
    "text": "text/plain",
    "form": "application/x-www-form-urlencoded",
    "multipart": "multipart/form-data; boundary=x",
    "xml": "application/xml",
    "pickle": "application/x-pickle",
    "octets": "application/octet-stream",
    "msgpack": "application/msgpack",
    "json-like": "application/jsonp",
    "json-patch": "application/json-patch+json",
    "json-lines": "application/x-ndjson",
    "text-json": "text/json",
    "any": "*/*",
    "two": "text/plain, application/json",
    "parameter": "text/plain; x=application/json",
    "long": "application/" + "j" * 4000,
}
_ENCODINGS = ("gzip", "GZIP", "deflate", "br", "zstd", "compress", "identity, gzip", "x", "base64")
_TIMEOUTS = {
    "zero": "0",
    "negative": "-1",
    "minus-zero": "-0.0",
    "word": "soon",
    "empty": "",
    "nan": "nan",
    "infinity": "inf",
    "infinity-word": "Infinity",
    "1e400": "1e400",
    "a-day-and-a-second": "86401",
    "two": "1,2",
    "unit": "5s",
    "hexadecimal": "0x10",
    "underscore": "1_0",
    "long": "9" * 4000,
}
_EVIL_HOSTS = {
    "name": "evil.example",
    "name-and-port": "evil.example:8000",
    "name-like-ours": "localhost.evil.example",
    "address-like-ours": "127.0.0.1.evil.example",
    "metadata-service": "169.254.169.254",
    "userinfo": "localhost@evil.example",
}


def _wrong_methods() -> list[Case]:
    rows = [(method, path, "POST") for path in _POSTED for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS")]
    rows += [(method, path, "GET") for path in _GOT for method in ("POST", "DELETE", "OPTIONS")]
    rows += [(method, COMPLETIONS, "POST") for method in ("HEAD", "TRACE", "PROPFIND", "LINK")]
    return [
        Case(
            name=f"{method}-{path}",
            method=method,
            path=path,
            body=_BODY if method == "POST" else b"",
            statuses=(405,),
            code="method_not_supported",
            allow=allow,
        )
        for method, path, allow in rows
    ]


def _missing(name: str, path: str, code: str, param: str | None) -> Case:
    return Case(name=name, method="GET", path=path, headers={}, statuses=(404,), code=code, param=param)


def _types() -> list[Case]:
    cases = [
        Case(
            name=f"type-{name}",
            body=_BODY,
            headers={} if value is None else {"content-type": value},
            statuses=(415, 400),
            code="unsupported_content_type",
        )
        for name, value in _TYPES.items()
    ]
    return cases + [
        Case(
            name=f"encoding-{encoding}",
            body=_BODY,
            headers=JSON_TYPE | {"content-encoding": encoding},
            statuses=(415, 400),
            code="unsupported_content_type",
        )
        for encoding in _ENCODINGS
    ]


def _timeouts() -> list[Case]:
    return [
        Case(
            name=f"timeout-{name}",
            body=_BODY,
            headers=JSON_TYPE | {"x-request-timeout": value},
            code="invalid_value",
            param="x-request-timeout",
        )
        for name, value in _TIMEOUTS.items()
    ]


def _hosts() -> list[Case]:
    """A web page of a stranger that calls itself by our address (RELIABILITY.md S27)."""
    return [
        Case(name=f"host-{name}", body=_BODY, headers=JSON_TYPE | {"host": host}, statuses=(403, 421), code=ANYTHING)
        for name, host in _EVIL_HOSTS.items()
    ]


CASES: list[Case] = [
    *_wrong_methods(),
    *(_missing(f"path-{path[:40]}", path, "unknown_url", None) for path in _NO_PATHS),
    *(
        _missing(f"model-{name}", f"/v1/models/{model}", "model_not_found", "model")
        for name, model in _NO_MODELS.items()
    ),
    *(
        _missing(f"stream-{name}", f"/v1/streams/{stream}", "stream_not_found", None)
        for name, stream in _NO_STREAMS.items()
    ),
    *_types(),
    *_timeouts(),
    *_hosts(),
]
