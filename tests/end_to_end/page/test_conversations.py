"""Conversations, kept in the browser."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

from tests.end_to_end.page.driver import QUESTION, ask, expect
from tests.server.fake_page_api import STEERED, UNSTEERED, FakeApi

if TYPE_CHECKING:
    from playwright.sync_api import Page


def kept(page: Page) -> list[dict[str, Any]]:
    texts: list[str] = page.evaluate(
        "Object.keys(localStorage).filter(key => key.startsWith('localsteer.talk.')).map(key => localStorage[key])"
    )
    return [json.loads(text) for text in texts]


def history(page: Page) -> Any:
    page.get_by_role("button", name="History").click()
    return page.get_by_role("dialog", name="Conversations")


def test_a_reload_keeps_everything(page: Page) -> None:
    page.get_by_label("Expression").fill("0.5 happy + 0.3 french")
    page.get_by_label("Side by side").check()
    ask(page)
    page.reload()
    expect(page.get_by_role("slider", name="french")).to_have_value("0.3")
    expect(page.locator(".words").first).to_have_text(STEERED)
    expect(page.get_by_label("Side by side")).to_be_checked()
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".turn")).to_have_count(0)
    page.reload()
    expect(page.locator(".turn")).to_have_count(0)


def test_a_reload_keeps_half_an_answer(page: Page, api: FakeApi) -> None:
    api.endless = True
    page.get_by_label("Message", exact=True).fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator(".words")).to_have_text(UNSTEERED)
    page.reload()
    expect(page.locator(".words")).to_have_text(UNSTEERED)
    expect(page.locator(".facts")).to_contain_text("stopped")


def test_an_answer_is_kept_while_it_is_written(page: Page, api: FakeApi) -> None:
    """A browser that is killed tells nobody."""
    api.endless = True
    page.get_by_label("Message", exact=True).fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator(".words")).to_have_text(UNSTEERED)
    deadline = time.monotonic() + 30
    while not any(one["turns"][0]["answers"][0]["text"] == UNSTEERED for one in kept(page)):
        assert time.monotonic() < deadline
        page.wait_for_timeout(100)


def test_conversations_are_listed_opened_renamed_and_deleted(page: Page) -> None:
    ask(page, "The first question")
    page.get_by_role("button", name="New chat").click()
    ask(page, "The second question")
    ask(page, "And then?")
    dialog = history(page)
    expect(dialog).to_contain_text("kept in this browser alone")
    entries = dialog.get_by_role("listitem")
    expect(entries).to_have_text(
        [re.compile("The second question.*2 questions, open now"), re.compile("The first question.*1 question")]
    )
    entries.last.get_by_role("button", name="Rename").click()
    page.keyboard.type("Something else")
    page.keyboard.press("Enter")
    expect(entries.last.locator("b")).to_have_text("Something else")
    entries.last.locator(".entry").click()
    expect(page.locator(".user")).to_have_text("The first question")
    ask(page, "Once more")
    expect(page.locator(".turn")).to_have_count(2)
    dialog = history(page)
    expect(entries.first.locator("b")).to_have_text("Something else")
    # Deleted for good only where that is meant.
    entries.last.get_by_role("button", name="Delete").click()
    expect(entries).to_have_count(2)
    entries.last.get_by_role("button", name="for good").click()
    expect(entries).to_have_count(1)
    dialog.get_by_role("button", name="Delete all").click()
    dialog.get_by_role("button", name="for good").click()
    expect(dialog).to_contain_text("There are none yet.")
    page.keyboard.press("Escape")
    expect(page.locator(".turn")).to_have_count(0)
    assert kept(page) == []


def test_what_is_deleted_while_it_is_written_stays_deleted(page: Page, api: FakeApi) -> None:
    api.endless = True
    page.get_by_label("Message", exact=True).fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator(".words")).to_have_text(UNSTEERED)
    dialog = history(page)
    dialog.get_by_role("button", name=f"Delete {QUESTION}").click()
    dialog.get_by_role("button", name="for good").click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.locator(".turn")).to_have_count(0)
    assert kept(page) == []


def test_what_another_tab_deletes_while_it_is_written_stays_deleted(page: Page, api: FakeApi) -> None:
    api.endless = True
    page.get_by_label("Message", exact=True).fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator(".words")).to_have_text(UNSTEERED)
    other = page.context.new_page()
    other.goto(page.url)
    dialog = history(other)
    dialog.get_by_role("button", name=f"Delete {QUESTION}").click()
    dialog.get_by_role("button", name="for good").click()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#talk-problem")).to_contain_text("deleted in another tab")
    assert kept(page) == []
    # What was said stays on the screen, and what is said from here on is another conversation.
    expect(page.locator(".words")).to_have_text(UNSTEERED)
    api.endless = False
    page.get_by_role("button", name="New chat").click()
    ask(page, "Something else")
    assert [one["title"] for one in kept(page)] == ["Something else"]
    expect(page.locator("#talk-problem")).to_be_empty()


def test_the_list_holds_still_for_who_renames_or_deletes_while_an_answer_is_written(page: Page, api: FakeApi) -> None:
    ask(page, "The first question")
    page.get_by_role("button", name="New chat").click()
    api.endless = True
    page.get_by_label("Message", exact=True).fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator(".words")).to_have_text(UNSTEERED)
    dialog = history(page)
    entries = dialog.get_by_role("listitem")
    keeps = "() => new Promise(kept => talks.addEventListener('change', kept, {once: true}))"
    page.evaluate("async () => { window.talks = (await import('/page/talks.js')).talks; }")
    entries.last.get_by_role("button", name="Rename").click()
    page.keyboard.type("Something")
    page.evaluate(keeps)
    page.keyboard.type(" else")
    expect(dialog.get_by_label("Title")).to_have_value("Something else")
    page.keyboard.press("Enter")
    expect(entries.last.locator("b")).to_have_text("Something else")
    entries.last.get_by_role("button", name="Rename").click()
    page.keyboard.type("Not meant")
    page.keyboard.press("Escape")
    expect(entries.last.locator("b")).to_have_text("Something else")
    entries.first.get_by_role("button", name="Rename").focus()
    page.evaluate(keeps)
    expect(entries.first.get_by_role("button", name="Rename")).to_be_focused()
    entries.first.get_by_role("button", name="Delete").click()
    entries.last.get_by_role("button", name="Delete").click()
    dialog.get_by_role("button", name="Done").focus()
    page.evaluate(keeps)
    entries.last.get_by_role("button", name="for good").click()
    expect(entries).to_have_text([re.compile(QUESTION[:-1])])


def test_a_title_is_all_that_renaming_changes(page: Page) -> None:
    ask(page, "Here")
    other = page.context.new_page()
    other.goto(page.url)
    entry = history(other).get_by_role("listitem")
    entry.get_by_role("button", name="Rename").click()
    ask(page, "From here")
    other.keyboard.type("Another name")
    other.keyboard.press("Enter")
    expect(entry).to_have_text(re.compile("Another name.*2 questions"))
    assert [(one["title"], len(one["turns"])) for one in kept(page)] == [("Another name", 2)]
    # What was deleted meanwhile does not come back.
    entry.get_by_role("button", name="Rename").click()
    page.evaluate("localStorage.clear()")
    other.keyboard.type("Once more")
    other.keyboard.press("Enter")
    expect(entry).to_have_count(0)
    assert kept(page) == []


def test_that_nothing_is_to_be_kept_holds_in_every_tab(page: Page) -> None:
    other = page.context.new_page()
    other.goto(page.url)
    nothing = history(page).get_by_label("Keep nothing from now on")
    nothing.check()
    ask(other, "Between us")
    assert kept(page) == []
    nothing_there = history(other).get_by_label("Keep nothing from now on")
    expect(nothing_there).to_be_checked()
    nothing_there.uncheck()
    other.keyboard.press("Escape")
    page.keyboard.press("Escape")
    ask(page, "To be kept")
    assert sorted(one["title"] for one in kept(page)) == ["Between us", "To be kept"]


def test_nothing_is_kept_where_that_is_wished(page: Page) -> None:
    ask(page, "Kept before")
    page.get_by_role("button", name="New chat").click()
    ask(page, "Between us")
    dialog = history(page)
    dialog.get_by_label("Keep nothing from now on").check()
    expect(dialog.get_by_role("listitem")).to_have_text([re.compile("Kept before")])
    page.keyboard.press("Escape")
    ask(page, "And this")
    assert [one["title"] for one in kept(page)] == ["Kept before"]
    page.reload()
    expect(page.locator(".turn")).to_have_count(0)
    ask(page, "Nor this")
    dialog = history(page)
    expect(dialog.get_by_label("Keep nothing from now on")).to_be_checked()
    dialog.get_by_label("Keep nothing from now on").uncheck()
    expect(dialog.get_by_role("listitem")).to_have_count(2)


def test_each_tab_has_its_own_conversation(page: Page) -> None:
    ask(page, "Here")
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.locator(".turn")).to_have_count(0)
    ask(other, "There")
    page.reload()
    expect(page.locator(".user")).to_have_text("Here")
    assert sorted(one["title"] for one in kept(page)) == ["Here", "There"]
    # The same one in two tabs: neither loses what it said.
    other.get_by_role("button", name="History").click()
    other.get_by_role("button", name=re.compile("^Here")).click()
    ask(other, "From there")
    ask(page, "From here")
    ends = sorted(one["turns"][-1]["user"] for one in kept(page))
    assert ends == ["From here", "From there", "There"]


def test_a_browser_without_room_says_that_it_keeps_nothing(page: Page) -> None:
    page.evaluate("() => { Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }; }")
    ask(page)
    expect(page.locator("#talk-problem")).to_contain_text("not kept")
    expect(page.locator(".words")).to_have_text(UNSTEERED)
