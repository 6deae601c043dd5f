"""A person at Prefect's UI: fills in a form, submits, looks at a run, cancels it.

Everything is found by what a person reads, so that one way of asking serves both versions of the UI
that Prefect 3.8.8 has. Chromium is driven by Playwright, which knows how to wait.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Locator, Page, Response, sync_playwright

from tests.waiting import PATIENCE_S

Version = Literal["v1", "v2"]
_PREFIX: dict[Version, str] = {"v1": "", "v2": "/v2"}
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = (
    "--no-sandbox",  # which root cannot have, and CI is root
    "--disable-gpu",
    # Nothing but the page is asked for: no updates, no look-ups of Google's hosts.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
_PATIENCE_MS = int(PATIENCE_S * 1000)
_REST_MS = 1_500
_BUSY = 503  # what the server answers while its SQLite database is locked
_MAX_TRIES = 5
SCREENSHOTS = Path(__file__).parent.parent / "build" / "screenshots"
"""Ignored by git; for a person to look at after a test."""


def chromium_path() -> str:
    """Return where the machine has Chromium; without one, skip the test that asks."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("no Chromium on PATH: apt-get install chromium")
    return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the machine's Chromium, or skip the tests that want it."""
    path = chromium_path()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        yield browser
        browser.close()


class Person:
    """Somebody who uses one version of the UI.

    Args:
        browser: What shows it.
        server: Url of the server, without /api.
        version: The old UI is ``v1``, the new one ``v2``.
        size: Width and height of the window.
    """

    def __init__(
        self, browser: Browser, server: str, version: Version, size: tuple[int, int] = (1200, 900)
    ) -> None:
        self._ui = server + _PREFIX[version]
        self._version = version
        self.page: Page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        self.page.set_default_timeout(_PATIENCE_MS)

    def open_form(self, deployment_id: object) -> None:
        """Open the form of a deployment, filled with its defaults."""
        self.page.goto(f"{self._ui}/deployments/deployment/{deployment_id}/run")
        self.title("Limits").wait_for()

    def open_run(self, run_id: object) -> None:
        """Open the page of a run."""
        self.page.goto(f"{self._ui}/runs/flow-run/{run_id}")

    def look_at(self, tab: str) -> None:
        """Turn to one of the tabs of a page."""
        self.settle()  # before that, a page may turn back to its first tab
        by_text = self.page.get_by_text(tab, exact=True)
        self.page.get_by_role("tab", name=tab).or_(by_text).first.click()

    def open_deployment(self, deployment_id: object) -> None:
        """Open the page of a deployment."""
        self.page.goto(f"{self._ui}/deployments/deployment/{deployment_id}")

    def open_artifact(self, artifact_id: object) -> None:
        """Open the page of an artifact."""
        self.page.goto(f"{self._ui}/artifacts/artifact/{artifact_id}")

    def title(self, text: str, nth: int = 0) -> Locator:
        """Return the title of a field, of which there may be several."""
        return self._titles(text).nth(nth)

    def _titles(self, text: str) -> Locator:
        same = f"normalize-space()='{text}' or normalize-space()='{text} (Optional)'"
        # In the old UI, a label has its text in a span: both would count.
        where = "self::span" if self._version == "v1" else "self::label or self::span"
        return self.page.locator(f"xpath=//*[{where}][{same}]")

    def field(self, text: str, nth: int = 0) -> Locator:
        """Return what is below a title to write in."""
        below = "xpath=following::*[self::input or self::textarea][1]"
        return self.title(text, nth).locator(below)

    def choose_tab(self, title: str, tab: str, nth: int = 0) -> None:
        """Choose one of the forms that a value may have."""
        below = f"xpath=following::button[normalize-space()='{tab}'][1]"
        self.title(title, nth).locator(below).click()

    def choose(self, title: str, option: str) -> None:
        """Choose a value of a dropdown."""
        self.title(title).locator(
            "xpath=following::fieldset[1]//button[@aria-haspopup='listbox']"
        ).click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def add_item(self, title: str, *fields: str) -> None:
        """Press the button below a list, and wait for the new item, which has these fields.

        They come one after the other; until they are there, others have their numbers.
        """
        new = [self._titles(field).nth(self._titles(field).count()) for field in fields]
        if self._version == "v2":
            handles = self.page.get_by_role("button", name="Drag to reorder", exact=True)
            new.append(handles.nth(handles.count()))
        below = "xpath=following::button[normalize-space()='Add item'][1]"
        self.title(title).locator(below).click()
        for part in new:
            part.wait_for()

    def delete_item(self, title: str, nth: int = 0) -> None:
        """Delete an item of a list in the new UI."""
        handle = f"xpath=following::button[@aria-label='Drag to reorder'][{nth + 1}]"
        self.title(title).locator(handle).locator("xpath=../button").last.click()
        self.page.get_by_role("menuitem", name="Delete", exact=True).click()

    def write_json(self, title: str, text: str) -> None:
        """Replace what is in the editor of a table."""
        below = "xpath=following::*[contains(@class, 'cm-content')][1]"
        self.title(title).locator(below).click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(text)  # typed keys would be completed by the editor

    def press(self, name: str) -> None:
        """Press what has a name: a link, a button, or a line of a menu."""
        link, button, item = (
            self.page.get_by_role("link", name=name, exact=True),
            self.page.get_by_role("button", name=name, exact=True),
            self.page.get_by_role("menuitem", name=name, exact=True),
        )
        link.or_(button).or_(item).first.click()

    def press_submit(self) -> None:
        """Press the button at the end of a form."""
        self.page.get_by_role("button", name="Submit").click()

    def submit(self) -> str:
        """Submit a form, as often as the server is too busy to take it; return the run's id."""
        for _ in range(_MAX_TRIES):
            with self.page.expect_response(_is_of_new_run) as answer:
                self.press_submit()
            if answer.value.status != _BUSY:
                break
        assert answer.value.ok, answer.value.text()
        run_id: str = answer.value.json()["id"]
        return run_id

    def cancel(self) -> None:
        """Cancel the run whose page is open."""
        if self._version == "v1":
            self.page.get_by_role("button", name="Cancel", exact=True).click()
            self.page.get_by_role("button", name="Confirm").click()
            return
        self.page.get_by_role("button", name="Open menu").click()
        self.page.get_by_role("menuitem", name="Cancel").click()
        self.page.get_by_role("button", name="Cancel Flow Run").click()

    def scroll_to(self, title: str) -> None:
        """Bring a field to the top of the window."""
        self.title(title).evaluate("element => element.scrollIntoView()")

    def settle(self) -> None:
        """Wait until nothing is loaded any more, and what moves has come to rest."""
        self.page.wait_for_load_state("networkidle")
        self.page.wait_for_timeout(_REST_MS)

    def sees(self, text: str) -> None:
        """Wait until a text is to be seen."""
        self.page.get_by_text(text).first.wait_for()

    def screenshot(self, name: str, folder: Path = SCREENSHOTS) -> Path:
        """Keep what is to be seen as NAME-VERSION.png."""
        path = folder / f"{name}-{self._version}.png"
        self.page.screenshot(path=path)
        return path


def _is_of_new_run(response: Response) -> bool:
    return response.url.endswith("/create_flow_run")
