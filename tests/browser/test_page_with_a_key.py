"""A server with a key: the page asks for it, and keeps it in the tab."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from house import House
from test_page_in_chromium import SECONDS, ask, expect_text, finish, opened

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.slow, pytest.mark.browser]
KEY = "correct-horse-battery-staple"


def give(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Go on").click()


def test_the_page_asks_for_the_key_and_keeps_it_in_the_tab(browser: Browser, house: House) -> None:
    from playwright.sync_api import expect

    with opened(browser, house.url) as page:
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("This server needs a key", timeout=SECONDS)
        give(page, "something else")
        expect(dialog).to_contain_text("not accepted", timeout=SECONDS)
        give(page, KEY)
        expect_text(page, "#status-text", "serving")
        assert "19" in finish(ask(page, "What is 12 + 7?"))
        page.reload()
        expect_text(page, "#status-text", "serving")
        expect(dialog).to_have_count(0)
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    with opened(browser, house.url) as another:
        expect(another.get_by_role("dialog")).to_contain_text("This server needs a key", timeout=SECONDS)
