"""The report in a real browser: it draws what the run holds, complains of nothing and asks nobody for anything."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from twin_loads import figures, orca_load, simulate

from orcinus.simulate.figures import Figures
from orcinus.simulate.report import write_page

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


def opened(browser: Any, file: Path, runs: list[Figures]) -> Any:
    write_page(file, runs, "A title")
    page = browser.new_page()
    page.complaints, page.requests = [], []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("request", lambda request: page.requests.append(request.url))
    page.goto(file.as_uri())
    return page


def test_every_sequence_of_the_window_has_its_cell(browser, tmp_path):
    run = figures(simulate(orca_load(rate=20.0, count=120), num_blocks=200, max_batch_size=12))
    page = opened(browser, tmp_path / "one.html", [run])
    assert page.complaints == []
    assert page.requests == [(tmp_path / "one.html").as_uri()]
    cells = page.locator("#gantt rect")
    assert cells.count() == sum(len(bar.work) for bar in run.bars) > 96
    cells.first.hover()
    assert f"request #{run.bars[0].work[0][0]}" in page.locator("#tip").inner_text()


def test_two_runs_are_laid_over_each_other(browser, tmp_path):
    runs = [figures(simulate(orca_load(rate=rate, count=60))) for rate in (5.0, 15.0)]
    page = opened(browser, tmp_path / "two.html", runs)
    assert page.complaints == []
    assert page.locator("#curves svg").count() == 4
    assert page.locator("#curves svg").first.locator("circle").count() == 2 * len(runs)
    page.locator("#gantt button").nth(1).click()
    assert page.locator("#gantt rect").count() == sum(len(bar.work) for bar in runs[1].bars)


def test_a_run_without_answers_is_a_page_too(browser, tmp_path):
    page = opened(browser, tmp_path / "none.html", [figures(simulate([]))])
    assert page.complaints == []
    assert "no iterations to show" in page.locator("#gantt").inner_text()
