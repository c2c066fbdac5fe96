"""How answers are shown: Markdown, thoughts, why, side by side, at several doses."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.end_to_end.page.conftest import Opened
from tests.end_to_end.page.driver import QUESTION, ask, expect, knob
from tests.server.fake_page_api import FIRED, PASSED, STEERED, UNSTEERED, FakeApi

if TYPE_CHECKING:
    from playwright.sync_api import Page

MARKDOWN = """## A plan

Some **bold**, *soft* and `inline` words &amp; an entity,
then a second line.

1. First
2. Second
   - inner

> quoted

```python
def f(x):
    return "<b>" * x
```

| name | count |
|:-----|------:|
| ab   | 12    |

- [x] done
- [ ] open

[a link](https://example.org/x?y=1) and ![a picture](https://example.org/p.png)
"""

# What hostile texts have tried elsewhere: none of it may run, load, or become an element that was not meant.
HOSTILE = [
    "<script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned=1'>",
    "<svg onload=window.pwned=1><style>*{display:none}</style></svg>",
    "<style>@import 'https://evil.example/x.css'; body{display:none}</style>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "<a href='javascript:window.pwned=1'>x</a><form action='https://evil.example'><input name=q></form>",
    "[x](javascript:window.pwned=1) [y](JaVaScRiPt:window.pwned=1) [z](java&#115;cript:window.pwned=1) [t](java\tscript:1)",
    "[x](data:text/html,<script>parent.pwned=1</script>) [v](vbscript:x) [f](file:///etc/passwd) [r](/v1) [b](//evil.example)",
    "![x](https://evil.example/p.png) ![y](javascript:1) ![](data:image/svg+xml,<svg/onload=1>)",
    '<https://evil.example/"onmouseover=window.pwned=1> <javascript:window.pwned=1>',
    '[x](https://evil.example/"onmouseover="window.pwned=1 "t" onclick=window.pwned=1")',
    "[ref]\n\n[ref]: javascript:window.pwned=1 'title'",
    '```html" onmouseover=window.pwned=1\n</code></pre><script>window.pwned=1</script>\n```',
    "`</code><img src=x onerror=window.pwned=1>`",
    '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=window.pwned=1&gt;">',
    '<noscript><p title="</noscript><img src=x onerror=window.pwned=1>">',
    "&lt;img src=x onerror=window.pwned=1&gt; &#60;script&#62;window.pwned=1&#60;/script&#62; &NotAnEntity; &#x110000;",
    "| <img src=x onerror=window.pwned=1> | [x](javascript:1) |\n|---|---|\n| <b>x</b> | ![i](https://evil.example/i.png) |",
    "<base href='https://evil.example/'><meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<link rel=stylesheet href=//evil.example><link rel=prefetch href=//evil.example>",
    "> " * 4000 + "deep",
    "*_" * 3000 + "[" * 3000 + "`" * 3000,
]
ELEMENTS = "p h3 h4 h5 strong em del code pre br a ul ol li blockquote hr div table tr th td input span button"
ATTRIBUTES = "class href title target rel tabindex role aria-label aria-live scope start type disabled checked"


def test_markdown_becomes_elements(page: Page, api: FakeApi) -> None:
    api.answer = MARKDOWN
    ask(page)
    words = page.locator(".words")
    expect(words.get_by_role("heading", name="A plan")).to_be_visible()
    expect(words.locator("strong")).to_have_text("bold")
    expect(words.locator("p").first).to_contain_text("words & an entity,")
    expect(words.locator("ol > li")).to_have_count(2)
    expect(words.locator("ol ul li")).to_have_text("inner")
    expect(words.locator("blockquote")).to_have_text("quoted")
    expect(words.locator("td")).to_have_text(["ab", "12"])
    expect(words.locator("td").last).to_have_css("text-align", "right")
    expect(words.get_by_role("checkbox", name="done")).to_be_checked()
    links = words.locator("a")
    expect(links).to_have_text(["a link", "image: a picture"])
    expect(links.first).to_have_attribute("href", "https://example.org/x?y=1")
    expect(links.first).to_have_attribute("rel", re.compile("noopener"))
    assert words.locator("img").count() == 0
    page.reload()
    expect(words.locator("strong")).to_have_text("bold")


def test_code_is_copied_by_a_button_of_its_own(page: Page, api: FakeApi) -> None:
    api.answer = MARKDOWN
    ask(page)
    code = page.locator(".code")
    expect(code.locator(".row > span").first).to_have_text("python")
    code.get_by_role("button", name="Copy").click()
    expect(code.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == 'def f(x):\n    return "<b>" * x'


def test_raw_shows_an_answer_as_it_was_written(page: Page, api: FakeApi) -> None:
    api.answer = MARKDOWN
    ask(page)
    raw = page.get_by_role("button", name="Raw")
    raw.click()
    expect(raw).to_have_attribute("aria-pressed", "true")
    assert page.locator(".words").inner_text().strip() == MARKDOWN.strip()
    page.get_by_role("button", name="Trait heat").click()
    expect(raw).to_have_attribute("aria-pressed", "false")
    expect(page.locator(".token").first).to_be_visible()
    page.get_by_role("button", name="Trait heat").click()
    expect(page.locator(".words strong")).to_have_text("bold")


def test_hostile_answers_stay_text(page: Page, api: FakeApi) -> None:
    for number, text in enumerate(HOSTILE, start=1):
        api.answer = f"{text}\n\nand **then**"
        ask(page)
        words = page.locator(".words")
        expect(words).to_have_count(number)
        expect(words.last).to_contain_text("and ")
        words.last.hover()
        assert page.evaluate("window.pwned") is None, text
    page.reload()
    words = page.locator(".words")
    expect(words).to_have_count(len(HOSTILE))
    expect(words.last).to_contain_text("and ")
    inside = "all => all.flatMap(one => [...one.querySelectorAll({})]).flatMap(inner => {})"
    assert set(words.evaluate_all(inside.format("'*'", "inner.localName"))) <= set(ELEMENTS.split())
    assert set(words.evaluate_all(inside.format("'*'", "inner.getAttributeNames()"))) <= set(ATTRIBUTES.split())
    for url in words.evaluate_all(inside.format("'[href]'", "inner.href")):
        assert re.match(r"(https?|mailto):", url), url
    assert page.evaluate("window.pwned") is None
    assert page.locator("h1").is_visible()


def test_what_a_person_writes_is_never_markup(page: Page) -> None:
    ask(page, "<img src=x onerror=alert(1)> **bold**")
    expect(page.locator(".user")).to_have_text("<img src=x onerror=alert(1)> **bold**")
    assert page.locator(".user *").count() == 0


# A text with everything, and how often its blocks are made anew but for the last one.
GROWING = (
    MARKDOWN.replace("- [x] done", "* [x] done").replace("&amp;", "and")
    + "\nA ***very*** last `line` of **strong *and* soft** words.\n"
)


def test_a_text_that_grows_neither_flickers_nor_shows_its_marks(page: Page) -> None:
    """After every single character: what stands there stays there, and the blocks before the last two keep their elements."""
    states: list[dict[str, Any]] = page.evaluate(
        """async text => {
          const { growingMarkdown } = await import("/page/markdown.js");
          const root = document.createElement("div");
          root.className = "words";
          document.getElementById("turns").append(root);
          const draw = growingMarkdown(root);
          const states = [];
          let before = [];
          for (let end = 1; end <= text.length + 1; end++) {
            draw(text.slice(0, end), end > text.length);
            const blocks = [...root.children];
            const kept = before.slice(0, -2).every((one, place) => one === blocks[place]);
            states.push({ text: root.innerText, kept, blocks: blocks.length });
            before = blocks;
          }
          return states;
        }""",
        GROWING,
    )
    assert all(state["kept"] for state in states)
    assert [state["blocks"] for state in states] == sorted(state["blocks"] for state in states)
    for before, after in itertools.pairwise(state["text"].split() for state in states):
        assert after[: len(before) - 1] == before[: len(before) - 1]
    assert not [state["text"] for state in states if re.search(r"[*`|#]|\]\(", state["text"].replace('"<b>" *', ""))]
    assert states[-1]["blocks"] == 10


def test_code_that_grows_keeps_its_element(page: Page, api: FakeApi) -> None:
    api.answer = "```\n" + "one line\n" * 5
    api.endless = True
    page.get_by_label("Message", exact=True).fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator(".code code")).to_contain_text("one line\none")
    page.locator(".code").evaluate("element => (element.mine = true)")
    expect(page.locator(".code code")).to_have_text("one line\n" * 4 + "one line")
    assert page.locator(".code").evaluate("element => element.mine")


def test_what_the_model_thinks_is_folded_and_no_part_of_the_answer(page: Page, api: FakeApi) -> None:
    ask(page)
    expect(page.locator(".thinking")).to_be_hidden()
    ask(page, "But why?")
    folded = page.locator(".thinking").last
    expect(folded.locator("p")).to_be_hidden()
    folded.locator("summary").click()
    expect(folded.locator("p")).to_have_text("They ask why.")
    expect(page.locator(".words").last).to_have_text(UNSTEERED)
    ask(page, "And then?")
    assert api.chats[2]["messages"][3]["content"] == UNSTEERED


def test_why_tells_what_was_added(page: Page, api: FakeApi) -> None:
    page.get_by_label("Expression").fill("0.5 happy + 2 happy")
    ask(page, "You idiot!")
    button = page.get_by_role("button", name="Why")
    button.click()
    told = page.get_by_role("region", name="Why")
    expect(told).to_contain_text("The answer is steered.")
    expect(told.get_by_role("row")).to_have_count(4)
    expect(told.get_by_role("row").nth(1)).to_have_text("0.5 happy8–10, 120.21")
    expect(told.get_by_role("row").nth(3)).to_have_text("together0.41")
    expect(told).to_contain_text("about as far as a system prompt")
    expect(told).to_contain_text("2 happy is past the calibrated range")
    expect(told.get_by_role("list", name="Decisions")).to_contain_text("“stay-calm” began to steer by calm")
    button.click()
    expect(told).to_have_count(0)
    page.get_by_label("Expression").fill("")
    ask(page)
    page.locator(".answer").last.get_by_role("button", name="Why").click()
    expect(told).to_contain_text("Nothing was added: this is the model as it is.")


def test_an_answer_that_was_stopped_says_why_as_well(page: Page, api: FakeApi) -> None:
    api.endless = True
    page.get_by_label("Expression").fill("0.5 happy")
    page.get_by_label("Message", exact=True).fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator(".words")).to_have_text(STEERED)
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Why").click()
    expect(page.get_by_role("region", name="Why").get_by_role("row")).to_have_count(2)


def test_policy_notes(page: Page) -> None:
    ask(page, "You idiot!")
    notes = page.get_by_role("list", name="The policy").get_by_role("listitem")
    expect(notes).to_have_text("“stay-calm” began to steer by calm after the prompt (hostile 0.93, true from 0.50).")
    expect(notes).to_have_class("acted")
    expect(page.locator(".facts")).to_contain_text("steered by the policy only")
    ask(page, "You friend!")
    expect(notes.last).to_have_text("“stay-calm” looked and did not act after the prompt (hostile 0.12, true from 0.50).")
    page.reload()
    expect(notes).to_have_count(2)


def test_a_policys_decisions_appear_in_the_margin_while_it_answers(page: Page, api: FakeApi) -> None:
    api.endless = True
    api.pace = 0.05
    api.decisions = [(3, {**FIRED, "position": 3}), (8, {**FIRED, "action": "release", "position": 8})]
    page.get_by_label("Message", exact=True).fill(QUESTION)
    page.keyboard.press("Enter")
    notes = page.get_by_role("list", name="The policy").get_by_role("listitem")
    expect(notes).to_have_text([re.compile("began to steer by calm at token 3")])
    expect(notes).to_have_text([re.compile("began"), re.compile("stopped steering by calm at token 8")])
    expect(page.locator(".answer")).to_have_class(re.compile("open"))
    words, margin = page.locator(".words").bounding_box(), page.get_by_role("list", name="The policy").bounding_box()
    assert words is not None
    assert margin is not None
    assert margin["x"] >= words["x"] + words["width"]
    page.set_viewport_size({"width": 360, "height": 740})
    words, margin = page.locator(".words").bounding_box(), page.get_by_role("list", name="The policy").bounding_box()
    assert words is not None
    assert margin is not None
    assert margin["y"] >= words["y"] + words["height"]


def places(page: Page, cards: Any) -> list[tuple[float, float]]:
    return [(box["x"], box["y"]) for box in (card.bounding_box() for card in cards.all())]


def test_side_by_side_stands_what_the_knobs_do_and_the_other_way(page: Page, api: FakeApi) -> None:
    page.get_by_role("slider", name="happy").fill("0.5")
    page.get_by_label("Side by side").check()
    ask(page)
    cards = page.locator(".answer")
    expect(cards.locator("h3")).to_have_text(["The other way", "Unsteered", "Steered"])
    expect(cards.locator(".words")).to_have_text([STEERED, UNSTEERED, STEERED])
    assert sorted(chat["steering"] for chat in api.chats) == ["", "-0.5 happy", "0.5 happy"]
    assert len({chat["seed"] for chat in api.chats}) == 1
    assert len({y for _, y in places(page, cards)}) == 1
    # Each goes on with what was said its own way.
    ask(page, "And then?")
    said = {chat["steering"]: chat["messages"][1]["content"] for chat in api.chats[3:]}
    assert said == {"": UNSTEERED, "-0.5 happy": STEERED, "0.5 happy": STEERED}
    page.set_viewport_size({"width": 360, "height": 740})
    assert len({x for x, _ in places(page, cards)}) == 1


def test_nothing_stands_beside_what_is_not_steered(page: Page, api: FakeApi) -> None:
    page.get_by_label("Side by side").check()
    ask(page)
    page.get_by_label("Expression").fill("!happy")
    ask(page)
    assert [chat["steering"] for chat in api.chats] == ["", "", "!happy"]  # what is removed has no opposite


def test_the_last_question_is_compared_without_asking_anew_for_what_is_there(page: Page, api: FakeApi) -> None:
    page.get_by_role("slider", name="happy").fill("0.5")
    ask(page)
    page.get_by_role("button", name="Compare").click()
    expect(page.locator(".answer .facts")).to_have_text([re.compile("seed")] * 3)
    assert [chat["steering"] for chat in api.chats] == ["0.5 happy", "-0.5 happy", ""]
    page.get_by_role("slider", name="happy").fill("1")
    page.get_by_label("Message", exact=True).fill("/compare")
    page.keyboard.press("Enter")
    expect(page.locator(".answer .facts")).to_have_text([re.compile("-happy"), re.compile("not steered"), re.compile("by happy")])
    assert [chat["steering"] for chat in api.chats[3:]] == ["-happy", "happy"]
    expect(page.locator(".turn")).to_have_count(1)


def test_a_sweep_answers_the_last_question_at_five_strengths_at_once(page: Page, api: FakeApi) -> None:
    page.get_by_role("slider", name="calm").fill("0.3")
    ask(page)
    api.endless = True
    page.get_by_role("button", name="Sweep happy").click()
    dialog = page.get_by_role("dialog", name="Sweep")
    expect(dialog.get_by_label("Vector")).to_have_value("happy")
    dialog.get_by_role("button", name="Answer").click()
    cards = page.locator(".sweep .answer")
    expect(cards.locator("h3")).to_have_text(["−1 happy", "−0.5 happy", "0 happy", "0.5 happy", "1 happy"])
    # All are written at the same time; that at 0 was there.
    expect(cards.locator(".words")).to_have_text([STEERED] * 5)
    expect(page.locator(".open")).to_have_count(4)
    asked = [chat["steering"] for chat in api.chats]
    assert sorted(asked[1:]) == sorted(f"0.3 calm {end}" for end in ("- happy", "- 0.5 happy", "+ 0.5 happy", "+ happy"))
    assert len({chat["seed"] for chat in api.chats}) == 1
    assert len({y for _, y in places(page, cards)}) == 1
    page.get_by_role("button", name="Stop").click()
    cards.nth(1).get_by_role("button", name="Turn the knob here").click()
    expect(knob(page, "happy").get_by_role("slider")).to_have_value("-0.5")
    # The conversation goes on with its own answer, and keeps the sweep.
    api.endless = False
    ask(page, "And then?")
    assert [message["content"] for message in api.chats[-1]["messages"]] == [QUESTION, STEERED, "And then?"]
    page.reload()
    expect(cards).to_have_count(5)


def test_a_sweep_at_0_goes_on_with_what_the_steered_answers_said(page: Page, api: FakeApi) -> None:
    """Beside it stands an unsteered answer, to another conversation."""
    page.get_by_role("slider", name="happy").fill("0.5")
    page.get_by_label("Side by side").check()
    ask(page)
    ask(page, "And then?")
    page.get_by_label("Message", exact=True).fill("/sweep happy 0 0.5 2")
    page.keyboard.press("Enter")
    expect(page.locator(".sweep .facts")).to_have_text([re.compile("not steered"), re.compile("steered by 0.5 happy")])
    assert [(chat["steering"], chat["messages"][1]["content"]) for chat in api.chats[6:]] == [("", STEERED)]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("/sweep", "Write /sweep NAME"),
        ("/sweep happy 1 x", "Write /sweep NAME"),
        ("/sweep happy -1 1 9", "at most 8"),
        ("/sweep hapy", "no vector called hapy"),
    ],
)
def test_a_sweep_is_asked_for_by_command(page: Page, api: FakeApi, written: str, told: str) -> None:
    message = page.get_by_label("Message", exact=True)
    message.fill("/sweep happy -1 1 3")
    page.keyboard.press("Enter")
    expect(page.locator("#message-problem")).to_contain_text("Ask something first")
    ask(page)
    message.fill(written)
    page.keyboard.press("Enter")
    expect(page.locator("#message-problem")).to_contain_text(told)
    expect(message).to_have_value(written)
    message.fill("/sweep happy 0 2 3")
    page.keyboard.press("Enter")
    expect(page.locator(".sweep h3")).to_have_text(["0 happy", "1 happy", "2 happy"])
    expect(page.locator(".sweep .facts")).to_have_text([re.compile("seed")] * 3)
    expect(page.locator("#message-problem")).to_be_empty()
    assert [chat["steering"] for chat in api.chats] == ["", "happy", "2 happy"]


def test_heat_begins_with_what_the_answer_is_steered_by(opened: Opened) -> None:
    page = opened()
    page.get_by_role("slider", name="happy").fill("0.5")
    ask(page)
    page.get_by_label("Expression").fill("0.5 calm")
    page.get_by_role("button", name="Trait heat").click()
    expect(page.get_by_label("Vector of the heat")).to_have_value("happy")


def test_a_policy_that_only_looked_did_not_steer(page: Page, api: FakeApi) -> None:
    api.decisions = [(0, PASSED)]
    ask(page)
    expect(page.locator(".facts")).to_contain_text("not steered")
