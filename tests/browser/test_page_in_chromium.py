"""The page in a real browser, over the real server: what a new user does on the first day."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from house import House, Wire

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = [pytest.mark.slow, pytest.mark.browser]
SECONDS = 60_000.0
STORY = "Tell me a story about an orca."
# Where the picture in the docs is to be written, if it is wanted.
PICTURE = "ORCINUS_PAGE_PICTURE"


@pytest.fixture
def page(browser: Browser, house: House) -> Iterator[Page]:
    """The page, opened; at the end nothing may have gone wrong in it, and nothing have been asked of anybody else."""
    with opened(browser, house.url) as page:
        yield page


class opened:
    """A tab of its own, as a context manager."""

    def __init__(self, browser: Browser, url: str, **options: object) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
        self.context.set_default_timeout(SECONDS)
        self.url = url
        self.wrong: list[str] = []
        self.asked: list[str] = []

    def __enter__(self) -> Page:
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("console", lambda message: self.wrong.append(message.text) if _is_complaint(message.text) else None)
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(self.url)
        return page

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.context.close()
        if kind is None:
            assert self.wrong == []
            assert all(url.startswith((self.url, "data:")) for url in self.asked)


def _is_complaint(text: str) -> bool:
    """Chromium writes down each connection that breaks, and each refusal; the page has to live with both."""
    return not text.startswith("Failed to load resource")


def answers(page: Page) -> Locator:
    return page.locator(".message.assistant")


def ask(page: Page, question: str) -> Locator:
    """Type a question; the element of its answer."""
    number = answers(page).count()
    page.get_by_label("Your message").fill(question)
    page.keyboard.press("Enter")
    return answers(page).nth(number)


def finish(answer: Locator) -> str:
    """Its text, once it has ended."""
    from playwright.sync_api import expect

    expect(answer).not_to_have_attribute("aria-busy", "true", timeout=SECONDS)
    return answer.locator(".content").inner_text()


def begun(answer: Locator) -> None:
    """Wait for its first word."""
    answer.locator(".content:not(:empty)").wait_for()


def set_sampling(page: Page, **values: str) -> None:
    page.get_by_text("Sampling and system prompt").click()
    for label, value in values.items():
        page.get_by_label(label.replace("_", " "), exact=True).fill(value)


def expect_text(page: Page, selector: str, text: str) -> None:
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_contain_text(text, timeout=SECONDS)


def test_a_question_is_answered_and_the_answer_tells_what_it_took(page: Page) -> None:
    set_sampling(page, Temperature="0")
    answer = ask(page, "What is 12 + 7?")
    assert "19" in finish(answer)
    figures = answer.locator(".figures").inner_text()
    assert re.fullmatch(r"TTFT \d+ ms · \d+ tokens · \d+ tokens/s", figures)
    expect_text(page, "#status-text", "serving")
    expect_text(page, "#model", "orcinus-tiny")
    expect_text(page, "#ttft td:last-child", "1")


def test_sampling_controls_and_the_system_prompt_reach_the_server(page: Page) -> None:
    set_sampling(page, Temperature="1.3", Top_p="0.9", Seed="7", Max_tokens="12", System_prompt="Be brief.")
    with page.expect_request("**/v1/chat/completions") as sent:
        answer = ask(page, STORY)
    body = sent.value.post_data_json
    assert (body["temperature"], body["top_p"], body["seed"], body["max_tokens"]) == (1.3, 0.9, 7, 12)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    first = finish(answer)
    assert re.search(r"\b12 tokens\b.*cut at the limit", answer.locator(".figures").inner_text())
    page.get_by_role("button", name="New chat").click()
    assert finish(ask(page, STORY)) == first


def test_a_number_out_of_range_is_shown_before_anything_is_sent(page: Page) -> None:
    set_sampling(page, Temperature="9")
    page.get_by_label("Your message").fill(STORY)
    page.keyboard.press("Enter")
    assert page.locator("#temperature:invalid").count() == 1
    assert answers(page).count() == 0


def test_a_refusal_is_shown_in_the_servers_words(page: Page) -> None:
    set_sampling(page, Max_tokens="100000")
    answer = ask(page, STORY)
    finish(answer)
    assert "maximum context length" in answer.locator(".figures").inner_text()
    assert "failed" in (answer.get_attribute("class") or "")


def test_stop_ends_the_work_and_the_conversation_goes_on(page: Page, house: House) -> None:
    set_sampling(page, Temperature="0")
    answer = ask(page, STORY)
    begun(answer)
    with house.held():
        page.get_by_role("button", name="Stop").click()
        text = finish(answer)
    assert answer.locator(".figures").inner_text().endswith("stopped")
    expect_text(page, "#running", "0")
    assert not text.endswith("The end.")
    assert "19" in finish(ask(page, "What is 12 + 7?"))


def test_a_crowd_shares_iterations_and_joins_and_leaves_between_them(page: Page, tmp_path: Path) -> None:
    begun(ask(page, STORY))
    page.get_by_role("button", name="Run a small crowd").click()
    expect_text(page, "#crowd-note", "All 12 requests answered.")
    finish(answers(page).first)
    expect_text(page, "#running", "0")
    columns = page.evaluate(
        "[...document.querySelectorAll('#columns g[data-iteration]')]"
        ".map(column => [...column.querySelectorAll('.cell')].map(cell => Number(cell.dataset.key)))"
    )
    assert max(map(len, columns)) >= 6
    sizes = [len(column) for column in columns]
    assert any(0 < after < before for before, after in pairwise(sizes)), "nobody left a batch"
    ends = {key: number for number, column in enumerate(columns) for key in column}
    starts = {key: number for number, column in reversed(list(enumerate(columns))) for key in column}
    later = [key for key in starts if any(starts[key] > ends[other] for other in ends)]
    others = [key for key in later if any(starts[other] < starts[key] < ends[other] for other in ends)]
    assert others, "nobody joined while others were running"
    assert page.locator("#columns .cell.prefill").count() >= 12
    assert page.locator("#columns text.own").count() == 1
    take_picture(page, Path(os.environ.get(PICTURE, tmp_path / "page.png")))


def take_picture(page: Page, path: Path) -> None:
    page.get_by_role("button", name="Show all").click()
    picture = page.screenshot(path=path)
    assert picture.startswith(b"\x89PNG")
    page.get_by_role("button", name="Show all").click()


def test_the_timeline_can_be_held_and_goes_on_with_what_came_meanwhile(page: Page) -> None:
    set_sampling(page, Temperature="0")
    finish(ask(page, "What is 12 + 7?"))
    expect_text(page, "#latest", "Iteration")
    expect_text(page, "#running", "0")
    before = page.locator("#columns g[data-iteration]").count()
    hold = page.get_by_role("button", name="Hold")
    hold.click()
    finish(ask(page, "What is 40 + 25?"))
    expect_text(page, "#ttft td:last-child", "2")
    expect_text(page, "#running", "0")
    assert page.locator("#columns g[data-iteration]").count() == before
    hold.click()
    assert page.locator("#columns g[data-iteration]").count() > before


def test_an_answer_finishes_with_the_same_words_when_the_engine_is_killed_in_the_middle(
    page: Page, house: House
) -> None:
    set_sampling(page, Temperature="0")
    undisturbed = finish(ask(page, STORY))
    page.get_by_role("button", name="New chat").click()
    answer = ask(page, STORY)
    begun(answer)
    os.kill(house.engine_pid(), signal.SIGKILL)
    expect_text(page, "#status-text", "the engine is being started")
    assert finish(answer) == undisturbed
    expect_text(page, "#status-text", "serving")
    assert page.locator("#columns .gap.restart").count() == 1


def test_an_answer_goes_on_where_it_was_when_the_connection_breaks(browser: Browser, house: House) -> None:
    wire = Wire(house.url)
    try:
        with opened(browser, wire.url) as page:
            set_sampling(page, Temperature="0")
            undisturbed = finish(ask(page, STORY))
            page.get_by_role("button", name="New chat").click()
            answer = ask(page, STORY)
            begun(answer)
            with house.held(), page.expect_request("**/v1/streams/*") as resumed:
                wire.cut()
            assert re.fullmatch(r"chatcmpl-\w+:0:\d+-*", resumed.value.headers["last-event-id"])
            assert finish(answer) == undisturbed
            expect_text(page, "#status-text", "serving")
    finally:
        wire.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Browser, house: House, scheme: str) -> None:
    with opened(browser, house.url, color_scheme=scheme) as page:
        page.set_viewport_size({"width": 360, "height": 740})
        set_sampling(page, Temperature="0")
        finish(ask(page, "What is 12 + 7?"))
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        # Text and ground of the two schemes are far apart: WCAG asks for 4.5.
        assert page.evaluate(CONTRAST) > 4.5


# Of the smallest text there is, by WCAG's formula.
CONTRAST = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((value) => value / 255);
  const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const light = (colour) => {
    const [red, green, blue] = channels(colour).map(linear);
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const text = light(getComputedStyle(document.querySelector(".figures")).color);
  const ground = light(getComputedStyle(document.querySelector("section")).backgroundColor);
  return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
}"""
