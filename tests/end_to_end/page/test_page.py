"""The page in a real browser, against a server with canned answers."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.end_to_end.page.conftest import Opened
from tests.end_to_end.page.driver import QUESTION, ask, expect, knob
from tests.server.fake_page_api import PAGE, POLES, STEERED, UNSTEERED, FakeApi

if TYPE_CHECKING:
    from playwright.sync_api import Page

PHONE = {"width": 360, "height": 740}
# All text of the page that is to be read, and nothing that is off.
READABLE = "p, h1, h2, h3, li, button, label, span, small, textarea, input:not([type=range])"


def test_chat(page: Page, api: FakeApi) -> None:
    ask(page)
    expect(page.locator(".words")).to_have_text(UNSTEERED)
    expect(page.locator(".facts")).to_have_text(re.compile(r"not steered · 23 tokens/s · seed \d+"))
    ask(page, "And then?")
    assert api.chats[0]["steering"] == ""
    assert [message["role"] for message in api.chats[1]["messages"]] == ["user", "assistant", "user"]
    assert api.chats[1]["messages"][1]["content"] == UNSTEERED
    page.locator(".answer").last.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == UNSTEERED
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".facts").last).to_contain_text("seed")
    expect(page.locator(".turn")).to_have_count(2)
    assert api.chats[2]["messages"] == api.chats[1]["messages"]


def test_settings_are_sent(page: Page, api: FakeApi) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System message").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.2")
    page.get_by_label("Longest answer, tokens").fill("50")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("What is steered").select_option("the answer, anchored")
    page.keyboard.press("Escape")
    ask(page)
    chat = api.chats[0]
    assert chat["anchored"] is True
    assert chat["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (chat["temperature"], chat["max_tokens"], chat["seed"], chat["steer_prompt"]) == (0.2, 50, 7, False)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Seed").fill("")
    page.get_by_label("What is steered").select_option("prompt and answer")
    page.get_by_label("Temperature").fill("9")
    expect(page.locator("#settings-problem")).to_contain_text("temperature")
    page.keyboard.press("Escape")
    ask(page)
    assert api.chats[1]["seed"] != 7
    assert (api.chats[1]["anchored"], api.chats[1]["steer_prompt"]) == (False, True)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("What is steered").select_option("as the server likes")
    page.keyboard.press("Escape")
    ask(page)
    assert (api.chats[2]["anchored"], api.chats[2]["steer_prompt"]) == (None, False)
    assert api.chats[1]["temperature"] == 0.2


def test_a_turned_knob_steers(page: Page, api: FakeApi) -> None:
    page.get_by_role("slider", name="happy").fill("0.5")
    page.get_by_role("slider", name="calm").fill("-0.3")
    expect(page.get_by_label("Expression")).to_have_value("0.5 happy - 0.3 calm")
    expect(page.get_by_role("slider", name="calm")).to_have_attribute("aria-valuetext", re.compile("toward angry"))
    ask(page)
    assert api.chats[0]["steering"] == "0.5 happy - 0.3 calm"
    expect(page.locator(".words")).to_have_text(STEERED)
    expect(page.locator(".facts")).to_contain_text("steered by 0.5 happy - 0.3 calm · relative dose 0.41")
    page.get_by_role("slider", name="calm").dblclick()
    expect(page.get_by_label("Expression")).to_have_value("0.5 happy")
    page.get_by_role("button", name="Reset happy").click()
    expect(page.get_by_label("Expression")).to_have_value("")


def test_a_knob_goes_as_far_as_it_was_measured_and_warns_beyond_strength_1(page: Page) -> None:
    happy = knob(page, "happy")
    slider = happy.get_by_role("slider")
    assert (slider.get_attribute("min"), slider.get_attribute("max")) == ("-1.95", "1.8")
    expect(happy.locator(".marks")).to_have_text("−1.95−1011.8")
    slider.fill("1")
    expect(happy.locator(".state")).to_be_empty()
    for strength in ("1.05", "-1.05"):
        slider.fill(strength)
        expect(happy.locator(".state")).to_have_text("▲ past the measured strength")
        expect(slider).to_have_attribute("aria-valuetext", re.compile("past the measured strength"))
    colour = "element => getComputedStyle(element).color"
    assert happy.locator(".value").evaluate(colour) != knob(page, "calm").locator(".value").evaluate(colour)
    # Dosed when it was built: twenty times its dose was tried, and no more than it toward the other pole.
    cautious = knob(page, "cautious")
    limits = (cautious.get_by_role("slider").get_attribute("min"), cautious.get_by_role("slider").get_attribute("max"))
    assert limits == ("-1.5", "4")
    cautious.get_by_role("slider").fill("1.5")
    expect(cautious.locator(".state")).to_have_text("▲ past the measured strength, not calibrated")


def test_a_strength_that_is_written_may_be_further_out(page: Page) -> None:
    page.get_by_label("Expression").fill("8 happy + 3 french")
    happy = knob(page, "happy")
    expect(happy.get_by_role("slider")).to_have_value("8")
    expect(happy.locator(".state")).to_have_text("▲ past all that was measured")
    french = knob(page, "french")
    expect(french.get_by_role("slider")).to_have_value("3")
    expect(french.locator(".state")).to_have_text("never measured on this model")
    page.get_by_label("Expression").fill("0.5 happy")
    expect(happy.get_by_role("slider")).to_have_attribute("max", "1.8")


@pytest.mark.parametrize(
    ("written", "strength"),
    [
        ("0.75 happy + 0.2 pirate", "0.75"),
        ("- 2*happy@8-20 + !calm", "-2"),
        ('"happy" + 0.1 calm', "1"),
        ("  .5e0 happy", "0.5"),
        ("0.25 happy@8-20@thinking", "0.25"),
    ],
)
def test_a_written_expression_turns_the_knobs(page: Page, api: FakeApi, written: str, strength: str) -> None:
    page.get_by_label("Expression").fill(written)
    expect(page.get_by_role("slider", name="happy")).to_have_value(strength)
    expect(page.locator("#expression-note")).to_be_empty()
    page.get_by_role("slider", name="cautious").fill("0.5")
    canonical = {
        "0.75": "0.75 happy + 0.2 pirate",
        "-2": "-2 happy@8-20 + !calm",
        "1": "happy + 0.1 calm",
        "0.5": "0.5 happy",
        "0.25": "0.25 happy@8-20@thinking",
    }
    expect(page.get_by_label("Expression")).to_have_value(f"{canonical[strength]} + 0.5 cautious")


def test_an_expression_that_does_not_parse_is_sent_as_it_is(page: Page, api: FakeApi) -> None:
    page.get_by_role("slider", name="happy").fill("0.5")
    page.get_by_label("Expression").fill("0.5 happy ** sad")
    expect(page.locator("#expression-note")).to_contain_text("Not understood from “** sad”")
    expect(page.get_by_role("slider", name="happy")).to_have_value("0.5")
    page.get_by_label("Message", exact=True).fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator(".answer").get_by_role("alert")).to_contain_text(
        "Expected the name or path of a vector.\n  0.5 happy ** sad"
    )
    page.get_by_label("Expression").fill("0.5 hapy")
    expect(page.locator("#expression-note")).to_have_text("Not among the server's vectors: hapy.")
    page.get_by_label("Expression").fill("0.5 happy")
    page.locator("#expression-actions").get_by_role("button", name="Copy").click()
    expect(page.locator("#expression-actions").get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "0.5 happy"


def test_a_knob_is_found_added_and_removed(page: Page) -> None:
    page.get_by_text("Add a knob").click()
    found = page.locator("#found li")
    expect(found).to_have_count(len(POLES) - 4)
    page.get_by_label("Search the vectors").fill("MODERN")
    expect(found).to_have_count(1)
    expect(found).to_contain_text("built at first use")
    found.get_by_role("button").click()
    slider = page.get_by_role("slider", name="pirate")
    expect(slider).to_be_focused()
    expect(knob(page, "pirate").locator(".poles")).to_have_text("modernpirate")
    slider.fill("1")
    page.get_by_role("button", name="Remove pirate").click()
    expect(page.locator(".knob")).to_have_count(4)
    expect(page.get_by_label("Expression")).to_have_value("")


def test_a_vector_that_is_being_built_says_so(page: Page, api: FakeApi) -> None:
    api.built.clear()
    page.get_by_label("Expression").fill("0.5 formal")
    expect(knob(page, "formal").locator(".state")).to_have_text("built at first use")
    page.get_by_label("Message", exact=True).fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_contain_text("Building formal for this model.")
    expect(knob(page, "formal").locator(".state")).to_have_text("being built now ...")
    api.built.set()
    expect(page.locator(".words")).to_have_text(STEERED)
    expect(page.locator(".answer")).not_to_contain_text("Building")
    expect(knob(page, "formal").locator(".state")).to_be_empty()


def test_curve_and_its_table(page: Page) -> None:
    page.get_by_role("button", name="Curve of happy").click()
    dialog = page.get_by_role("dialog", name="happy")
    drawing = dialog.get_by_role("img")
    expect(drawing.locator(".point")).to_have_count(2 * 9)  # the effect and the cost of nine doses
    expect(drawing).to_contain_text("budget 0.25")
    expect(drawing).to_contain_text("coherence cost, nats a token")
    expect(drawing.locator(".unit")).to_have_count(4)
    expect(dialog.get_by_role("row")).to_have_count(10)
    expect(dialog.get_by_role("row").nth(1)).to_have_text(re.compile(r"−1\.99\s*0\.37\s*−2\.22 \(−2\.78 to −1\.53\)\s*\+0\.62"))
    points = drawing.locator(".point circle").evaluate_all("circles => circles.map(one => +one.getAttribute('cx'))")
    assert points[:9] == sorted(points[:9])
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


def test_curve_of_a_side_without_a_dose(page: Page) -> None:
    page.get_by_role("button", name="Curve of bullets").click()
    dialog = page.get_by_role("dialog", name="bullets")
    expect(dialog).to_contain_text("Toward prose nothing inside the budget does anything")
    expect(dialog.get_by_role("row")).to_have_count(10)
    expect(dialog.get_by_role("row").nth(1)).to_contain_text("−1.43")


def test_curve_of_a_vector_that_is_not_calibrated(page: Page) -> None:
    page.get_by_role("button", name="Curve of cautious").click()
    dialog = page.get_by_role("dialog", name="cautious")
    expect(dialog).to_contain_text("Not calibrated: strength 1 is as much as its text was seen to bear when it was built.")
    expect(dialog).to_contain_text('"localsteer calibrate cautious -m demo" measures more.')
    expect(dialog.get_by_role("img")).to_have_count(0)
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_heat(opened: Opened, scheme: str) -> None:
    page = opened(color_scheme=scheme)
    page.get_by_role("slider", name="happy").fill("0.5")
    ask(page)
    page.get_by_role("button", name="Trait heat").click()
    expect(page.get_by_label("Vector of the heat")).to_have_value("happy")
    tokens = page.locator(".token")
    expect(tokens.first).to_have_attribute("title", re.compile(r"[+−]0\.\d{3}"))
    # Characters that the tokenizer split are whole again.
    assert "".join(tokens.all_inner_texts()) == STEERED
    assert min(contrasts(page, ".token").values()) >= 4.5
    page.get_by_label("Tokens", exact=True).focus()
    page.keyboard.press("End")
    expect(page.locator(".heat [role=status]")).to_have_text(re.compile(r"“🎉” [+−]0\.\d{3} toward (happy|sad), token 23 of 23"))
    page.get_by_label("Vector of the heat").select_option("calm")
    expect(page.locator(".legend")).to_contain_text("angry")
    page.get_by_role("button", name="Trait heat").click()
    expect(page.locator(".words")).to_have_text(STEERED)


def test_keyboard_only(page: Page, api: FakeApi) -> None:
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    page.keyboard.type("One")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    tab_to(page, page.get_by_role("slider", name="happy"))
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    expect(page.get_by_label("Expression")).to_have_value("0.5 happy")
    outline = page.get_by_role("slider", name="happy").evaluate("element => getComputedStyle(element).outlineStyle")
    assert outline == "solid"
    tab_to(page, page.get_by_text("Add a knob"))
    page.keyboard.press("Enter")
    expect(page.get_by_label("Search the vectors")).to_be_focused()
    page.keyboard.type("french")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("slider", name="french")).to_be_focused()
    page.keyboard.press("ArrowRight")
    api.endless = True
    tab_to(page, page.get_by_label("Message", exact=True), backwards=True)
    page.keyboard.press("Enter")
    expect(page.locator(".words")).to_have_text(STEERED)
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".facts")).to_have_text(re.compile("^stopped · steered by 0.5 happy . 0.05 french"))
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    assert api.chats[0]["messages"] == [{"role": "user", "content": "One\ntwo"}]


def tab_to(page: Page, target: Any, *, backwards: bool = False) -> None:
    for _ in range(80):
        if target.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press("Shift+Tab" if backwards else "Tab")
    pytest.fail(f"{target} cannot be reached by the keyboard")


def test_the_key_is_asked_for(opened: Opened, api: FakeApi) -> None:
    api.key = "secret"
    page = opened()
    form = page.get_by_role("dialog", name="API key")
    form.get_by_label("API key").fill("wrong")
    page.keyboard.press("Enter")
    expect(form).to_contain_text("That key was refused.")
    form.get_by_label("API key").fill("secret")
    form.get_by_role("button", name="Go on").click()
    expect(page.locator(".knob")).to_have_count(4)
    expect(page.locator("#model")).to_have_text("demo")
    ask(page)
    api.key = "another"
    page.get_by_label("Message", exact=True).fill("Once more")
    page.keyboard.press("Enter")
    expect(form).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".answer").last.get_by_role("alert")).to_have_text("The API key is missing or wrong.")
    assert "secret" not in json.dumps(page.evaluate("Object.values(localStorage)"))


def test_errors_are_told_where_they_happen(page: Page, api: FakeApi) -> None:
    api.busy = True
    page.get_by_label("Message", exact=True).fill(QUESTION)
    page.keyboard.press("Enter")
    expect(page.locator(".answer").get_by_role("alert")).to_have_text("Too many answers wait. Try again in 3 s.")
    api.busy = False
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".words")).to_have_text(UNSTEERED)
    expect(page.locator(".turn")).to_have_count(1)


def test_the_default_of_the_server(opened: Opened, api: FakeApi) -> None:
    api.default = "0.4 calm"
    page = opened()
    expect(page.locator("#default-now")).to_have_text("0.4 calm, relative dose 0.61.")
    expect(page.get_by_role("slider", name="calm")).to_have_value("0.4")
    page.get_by_role("slider", name="calm").fill("0.8")
    page.get_by_role("button", name="Make this the server's default").click()
    expect(page.locator("#default-now")).to_contain_text("0.8 calm")
    assert api.default == "0.8 calm"
    page.get_by_role("button", name="All off").click()
    page.get_by_role("button", name="Use it here").click()
    expect(page.get_by_label("Expression")).to_have_value("0.8 calm")


def test_without_storage_it_only_forgets(opened: Opened, page_url: str) -> None:
    page = opened()
    forbidden = "get() { throw new Error('forbidden') }"
    for name in ("localStorage", "sessionStorage"):
        page.add_init_script(f"Object.defineProperty(window, '{name}', {{ {forbidden} }})")
    page.goto(page_url)
    expect(page.locator(".knob")).to_have_count(4)
    ask(page)
    expect(page.locator(".words")).to_have_text(UNSTEERED)


@pytest.mark.parametrize("width", [320, 360, 414, 768, 1280])
def test_the_head_of_the_page_is_one_line(opened: Opened, width: int) -> None:
    page = opened(viewport={"width": width, "height": 740})
    expect(page.locator(".knob")).to_have_count(4)
    heights = page.locator("header button").evaluate_all("all => all.map(one => one.getBoundingClientRect().height)")
    assert max(heights) < 36
    assert len(set(page.locator("header button").evaluate_all("all => all.map(one => one.getBoundingClientRect().top)"))) == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_no_horizontal_scroll_on_a_phone(opened: Opened) -> None:
    page = opened(viewport=PHONE)
    fits = "['log', 'steering'].every(id => (one => one.scrollWidth <= one.clientWidth)(document.getElementById(id)))"
    narrow = f"document.documentElement.scrollWidth <= innerWidth && {fits}"
    page.get_by_label("Side by side").check()
    ask(page, f"{QUESTION} {'averylongword' * 20}")
    page.get_by_role("button", name="Trait heat").first.click()
    expect(page.locator(".token").first).to_be_visible()
    assert page.evaluate(narrow)
    page.get_by_role("button", name=re.compile("^Knobs")).click()
    page.get_by_label("Expression").fill("1.5 happy + 0.5 respectful + 0.5 enthusiastic")
    expect(page.get_by_role("slider", name="enthusiastic")).to_be_visible()
    assert page.evaluate(narrow)
    page.get_by_role("button", name="Curve of happy").click()
    expect(page.get_by_role("dialog").get_by_role("img")).to_be_visible()
    assert page.evaluate("(dialog => dialog.scrollWidth <= dialog.clientWidth)(document.getElementById('curve'))")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(page.locator("#steering")).to_be_hidden()
    expect(page.get_by_role("button", name=re.compile("^Knobs"))).to_be_focused()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(opened: Opened, scheme: str) -> None:
    page = opened(color_scheme=scheme)
    page.get_by_role("slider", name="happy").fill("1.5")
    page.get_by_label("Side by side").check()
    ask(page, "You idiot!")
    found = contrasts(page, READABLE)
    assert len(found) > 40
    assert {text: ratio for text, ratio in found.items() if ratio < 4.5} == {}


def contrasts(page: Page, selector: str) -> dict[str, float]:
    """By text the contrast of its colour with what is painted behind it, as WCAG 2 defines it."""
    found: dict[str, float] = page.evaluate(
        """selector => {
          const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
          const paint = colours => {
            canvas.clearRect(0, 0, 1, 1);
            for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
            return canvas.getImageData(0, 0, 1, 1).data;
          };
          const light = ([red, green, blue]) => {
            const part = one => one / 255 <= 0.04045 ? one / 255 / 12.92 : ((one / 255 + 0.055) / 1.055) ** 2.4;
            return 0.2126 * part(red) + 0.7152 * part(green) + 0.0722 * part(blue);
          };
          const behind = element => element ? [...behind(element.parentElement), getComputedStyle(element).backgroundColor] : [];
          const ratio = element => {
            const back = behind(element);
            const [one, other] = [light(paint(back)), light(paint([...back, getComputedStyle(element).color]))];
            return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
          };
          const own = element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()) || element.value;
          const shown = [...document.querySelectorAll(selector)].filter(element => element.checkVisibility() && own(element));
          return Object.fromEntries(shown.map((element, place) => [`${place} ${element.textContent.trim()}`, ratio(element)]));
        }""",
        selector,
    )
    return found


def test_the_page_is_light_and_asks_nobody_else() -> None:
    files = [file for file in PAGE.iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 105_000
    assert sum(file.stat().st_size for file in (PAGE / "vendor").rglob("*.js")) < 55_000
    for file in files:
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|innerHTML|insertAdjacentHTML|\beval\b|\balert\(|\sstyle=", text), file.name
