"""`orcinus explain`: where the time of a response went."""

from __future__ import annotations

import os
from urllib.parse import quote


def explain(response_id: str, /, *, url: str = "http://127.0.0.1:8000", api_key: str | None = None) -> int:
    """Where the time of a response went: its causes, from the first byte to the last, as the engine's journal has it.

    Args:
        response_id: the `id` that stood in the answer, as chatcmpl-….
        url: of the server.
        api_key: the key that the request was sent with. Better given as ORCINUS_API_KEY.
    """
    from orcinus.chat.endpoint import API_KEY_VARIABLE, Endpoint
    from orcinus.chat.story import show_explanation
    from orcinus.server.explanations import EXPLAIN_PATH, Explanation

    endpoint = Endpoint(url, api_key or os.environ.get(API_KEY_VARIABLE))
    path = EXPLAIN_PATH.replace("{reply_id}", quote(response_id, safe=""))
    show_explanation(endpoint.get(path, Explanation))
    return 0
