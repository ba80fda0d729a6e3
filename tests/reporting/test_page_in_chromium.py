"""The page in a browser without a window: every control works, and nothing leaves the file."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from page_content import EARLIER, HOSTILE, JUDGES, SECRET, SUBJECTS, TITLES, make_content

from mosa.reporting.content import Content, Overview, Sample
from mosa.reporting.page import render_page
from mosa.reporting.tables import FORMATS, named_tables

pytestmark = pytest.mark.integration

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install playwright"
)

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
NOT_JUDGED = "not judged"
FIRST, SECOND, THIRD = JUDGES


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser is installed; any of {', '.join(BROWSERS)} will do")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def content() -> Content:
    return make_content()


@pytest.fixture(scope="module")
def files(content, tmp_path_factory) -> dict[str, Path]:
    """The page whole; and the samples alone, redacted, cut, and of 10,000 short tries."""
    folder = tmp_path_factory.mktemp("pages")

    def bare(content: Content) -> Content:
        return replace(content, sections=(), overview=Overview())

    samples = render_page(bare(content))
    redacted = make_content(is_redacted=True, num_samples=40)
    large = make_content(num_samples=10_000, num_tokens=16)
    limit = len(samples.encode()) - 15_000
    pages = {
        "whole": render_page(content),
        "world": render_page(replace(content, shows_words=True)),
        "samples": samples,
        "redacted": render_page(bare(redacted)),
        "cut": render_page(bare(content), max_bytes=limit),
        "large": render_page(bare(large)),
    }
    for name, page in pages.items():
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in pages}


@pytest.fixture
def visit(browser, files) -> Iterator[Callable[..., Any]]:
    """Opens a page; at the end of the test there was no error and no request but for the file."""
    contexts, errors, requests = [], [], set()
    allowed = set()

    def open_page(
        name: str = "whole",
        *,
        ready: bool = True,
        folded: bool = False,
        address: str = "",
        **options: Any,
    ) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.add(request.url.partition("#")[0]))
        page.set_default_timeout(60_000)
        allowed.add(files[name].as_uri())
        page.goto(files[name].as_uri() + address)
        if ready:
            page.wait_for_selector("#detail h3")
            if not folded:
                page.evaluate("document.getElementById('unfold').click()")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
    assert {url for url in requests if not url.startswith("blob:")} <= allowed


def visible_tables(page) -> dict[str, list[list[str]]]:
    """What stands in the tables that can be seen, by the id of their card."""
    return page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll(".table-card")]
          .filter((card) => card.checkVisibility())
          .map((card) => [card.id, [...card.querySelectorAll("tr")].map(
            (row) => [...row.cells].map((cell) => cell.textContent.trim()))]))"""
    )


def outcome_of(sample: Sample, judge: str) -> str:
    return sample.outcomes.get(judge) or sample.outcomes.get("compliance/1", NOT_JUDGED)


def until(page, condition: str) -> None:
    """Waits for a condition; Playwright's own way is stopped by the page's security policy."""
    for _ in range(100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"it never came to {condition}")


def count(page) -> int:
    return int(page.inner_text("#count").split(" of ")[0].replace(",", ""))


def choose_judge(page, place: str, judge: str) -> None:
    page.click(f'input[name="judge-{place}"][value="{judge}"]', force=True)


# ----------------------------------------------------------------------------------- the judge


def test_judge_switch_of_any_section_switches_all(visit, content):
    """Tables show the figures of the chosen judge; those of no judge stay; outcomes follow."""
    page = visit()
    for place, judge in (("attacks", SECOND), ("samples", THIRD), ("scoreboard", FIRST)):
        choose_judge(page, place, judge)
        checked = page.eval_on_selector_all(
            ".judge-switch input:checked", "inputs => inputs.map((input) => input.value)"
        )
        assert checked == [judge] * 3
        shown = visible_tables(page)
        wanted = {}
        for name, table in named_tables(content):
            is_there = table.judge in ("", judge) and table.base in ("", "Original")
            if is_there and f'id="table-{name}"' in page.content():
                wanted[f"table-{name}"] = len(table.rows) + 1
        assert {name: len(rows) for name, rows in shown.items()} == wanted
        names = {
            name: table
            for name, table in named_tables(content)
            if table.judge == judge and f"table-{name}" in wanted
        }
        for name, table in names.items():
            for row, cells in zip(table.rows, shown[f"table-{name}"][1:], strict=True):
                for cell, text in zip(row[1:], cells[1:], strict=True):
                    if type(cell).__name__ == "Rate":
                        figures = re.sub("[\u25b2\u25bc]", "", text)
                        assert figures.startswith(f"{cell.value:.2f}{cell.low:.2f} to ")  # pyright: ignore
        outcomes = page.locator("#list .outcome").all_inner_texts()
        assert outcomes == [outcome_of(s, judge) for s in content.samples[:20]]


def test_judge_switch_with_the_keyboard(visit):
    page = visit()
    page.focus(f'input[name="judge-attacks"][value="{FIRST}"]')
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#table-attacks-refusal-1")
    assert not page.is_visible("#table-attacks-truth-2-world-0")


# ----------------------------------------------------------------------------- at a glance


def test_the_first_screen_holds_sentence_picture_tiles_and_case(visit, content):
    page = visit(folded=True, viewport={"width": 1400, "height": 900})
    assert page.inner_text(".headline") == content.overview.headline
    for selector in (".picture", ".tile", "#showcase"):
        for element in page.locator(selector).all():
            box = element.bounding_box()
            assert box["y"] >= 0 and box["y"] + box["height"] <= 900, selector
    assert page.locator("details.fold").count() > 8
    assert page.locator("details.fold[open]").count() == 0


def test_the_case_of_the_first_screen_plays_by_itself(visit, content):
    """Words to be read, as far as the slider is; all responses together; still at the end."""
    page = visit("world")
    until(page, "document.getElementById('showcase-play').textContent.includes('Play')")
    assert page.locator("#showcase .mask").count() == 0
    first = content.samples[0].responses[0]
    end = min(first.end_positions)
    shown = page.locator('[data-sample="0"] .t').all_text_contents()
    assert shown == [*(first.tokens or ())[:end], "end"]
    page.locator("#showcase-slider").press("Home")
    assert page.locator("#showcase .t:not(.mask):not(.pinned)").count() == 0
    page.click("#showcase-play")
    until(page, "document.getElementById('showcase-slider').value >= 3")
    page.click("#showcase-play")
    assert page.locator("#showcase .mask").count() > 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#showcase .mask").count() == 0


def test_words_of_the_case_are_hidden_until_asked_for(visit):
    page = visit(reduced_motion="reduce")
    assert set(page.locator("#showcase .t").all_text_contents()) <= {"", "·"}
    page.click("#showcase-words")
    assert "copper" in page.inner_text('[data-sample="0"]')
    assert page.input_value("#showcase-slider") == page.get_attribute("#showcase-slider", "max")


def test_links_of_the_contents_open_what_is_folded(visit):
    page = visit(folded=True)
    assert not page.is_visible("#table-budget")
    page.click(".side a:text('Budget')")
    assert page.is_visible("#table-budget")


# ------------------------------------------------------------------- comparing and sorting


def test_any_subject_can_be_compared_with(visit, content):
    """Arrows and the numbers behind them are those against the chosen subject."""
    page = visit()
    heat = next(t for s in content.sections for t in s.tables if t.changes)
    for base in ("MOSA (robust)", "Original"):
        page.select_option("select.base", label=base)
        card = page.locator("#table-attacks-truth-2-world-0")
        shown = [i for i in card.locator(".change").all() if i.is_visible()]
        wanted = heat.changes[base]
        assert sorted(i.get_attribute("title") for i in shown) == sorted(
            change.told for change in wanted.values()
        )
        tables = [name for name in visible_tables(page) if name.startswith("table-differences")]
        assert len(tables) == 1 and base.split("(")[-1][:5].lower() in tables[0]


def test_headings_sort_with_the_mouse_and_the_keyboard(visit, content):
    """Numbers from the largest, then from the smallest, then as written; gaps stay last."""
    page = visit()
    card = page.locator("#table-attacks-truth-2-world-0")

    table = next(t for s in content.sections for t in s.tables if t.name == "attacks")
    head = card.locator("thead th").nth(4)
    button = head.locator("button")

    def attacks() -> list[str]:
        return card.locator("tbody th").all_inner_texts()

    def shown(rows) -> list[str]:
        return [TITLES.get(str(row[0]), str(row[0])) for row in rows]

    known = [row for row in table.rows if row[4] is not None]
    gaps = [row for row in table.rows if row[4] is None]
    up = sorted(known, key=lambda row: row[4].value)
    down = sorted(known, key=lambda row: -row[4].value)
    assert len(gaps) == 1
    button.click()
    assert head.get_attribute("aria-sort") == "descending" and attacks() == shown([*down, *gaps])
    button.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending" and attacks() == shown([*up, *gaps])
    button.press("Space")
    assert head.get_attribute("aria-sort") is None and attacks() == shown(table.rows)
    by_name = card.locator("thead button").first
    by_name.click()
    assert attacks() == sorted(shown(table.rows), key=str.lower)


# ------------------------------------------------------------------- addresses of samples


def test_a_cell_of_the_map_opens_its_samples(visit, content):
    page = visit()
    row = page.locator('#table-attacks-truth-2-world-0 tr:has(th[data-attack="code_attack"])')
    row.locator("a.to-samples").nth(2).click()
    wanted = ("code_attack", "MOSA (paper)")
    fitting = [s for s in content.samples if (s.attack, s.subject) == wanted]
    until(page, f"document.getElementById('count').textContent.startsWith('{len(fitting)} of')")
    assert page.input_value("[data-column=subject]") == '"MOSA (paper)"'
    assert page.evaluate("document.activeElement.id") == "list"
    until(page, "document.getElementById('samples').getBoundingClientRect().top < 200")
    assert page.locator("#samples").bounding_box()["y"] >= -5
    page.go_back()
    assert "#samples" not in page.url


def test_the_worst_attack_of_a_tile_opens_its_samples(visit, content):
    page = visit()
    page.locator(".tile .remark a").nth(2).click()
    shown_by = content.overview.tiles[[*SUBJECTS][2]][0].shown_by
    fitting = [
        sample
        for sample in content.samples
        if all(getattr(sample, name) == value for name, value in shown_by.items())
    ]
    until(page, f"document.getElementById('count').textContent.startsWith('{len(fitting)} of')")
    assert fitting and page.input_value("[data-column=attack]") == '"prefill"'


def address_of(sample: Sample) -> str:
    parts = [sample.subject, sample.attack, sample.case_set, sample.case]
    parts += [str(sample.seed), str(sample.number)]
    return "#sample=" + "/".join(quote(part, safe="!'()*~-._") for part in parts)


def test_samples_have_addresses(visit, content):
    """An address opens its sample; what the reader chooses stands in the address."""
    asked = content.samples[101]
    page = visit(address=address_of(asked))
    attack = TITLES.get(asked.attack, asked.attack)
    assert page.inner_text("#detail h3") == f"{asked.subject}: {attack}, {asked.case}"
    page.locator("#list").press("ArrowDown")
    assert page.evaluate("location.hash") == address_of(content.samples[102])
    assert page.evaluate("history.length") <= 2
    unknown = visit(address="#sample=nobody/knows/this")
    assert "plain request" in unknown.inner_text("#detail h3")


def test_left_and_right_step_through_the_tries_of_a_case(visit, content):
    """Keys in the list and buttons; at either end they stay."""
    key = ("MOSA (paper)", "direct", "testbed", "copper kiln", 0)
    found = [s for s in content.samples
             if (s.subject, s.attack, s.case_set, s.case, s.seed) == key]  # fmt: skip
    first, second = sorted(found, key=lambda s: s.number)
    page = visit("samples", address=address_of(first))
    assert "try 1 of 2" in page.inner_text("#detail .tries")
    listed = page.locator("#list")
    for press, sample in (("ArrowRight", second), ("ArrowRight", second), ("ArrowLeft", first)):
        listed.press(press)
        assert page.evaluate("location.hash") == address_of(sample)
    page.click('#detail [aria-label="Next try"]')
    assert page.evaluate("location.hash") == address_of(second)
    assert page.is_disabled('#detail [aria-label="Next try"]')


def test_two_subjects_stand_side_by_side_on_one_case(visit):
    """The same attack on the same case, left and right; a subject without it is told of."""
    page = visit("samples")
    page.select_option("#beside", label="MOSA (paper)")
    heads = page.locator("#detail h3").all_inner_texts()
    assert heads == [f"{name}: plain request, copper kiln" for name in ("Original", "MOSA (paper)")]
    left, right = (side.bounding_box() for side in page.locator(".side-by").all())
    assert left["y"] == right["y"] and left["x"] < right["x"]
    page.select_option("#beside", label="Initial alignment")
    assert page.locator("#detail h3").count() == 1
    assert "Initial alignment has no sample" in page.inner_text("#detail")


# ---------------------------------------------------------------------------------- saving


def test_saved_tables_are_what_the_command_line_writes(visit, content):
    """Every button of three tables: of one judge, of none, and behind a chart."""
    page = visit()
    tables = dict(named_tables(content))
    page.click("#figure-training summary")
    for name in ("attacks-truth-2-world-0", "usefulness", "training"):
        for suffix, text_of in FORMATS.items():
            with page.expect_download() as saved:
                page.click(f'[data-save="{name}"][data-format="{suffix}"]')
            assert saved.value.suggested_filename == f"{name}.{suffix}"
            text = Path(saved.value.path()).read_text(encoding="utf-8")
            assert text == text_of(tables[name])


def test_long_tables_open(visit):
    page = visit()
    rows = page.locator("#table-budget tbody tr")
    assert [rows.nth(i).is_visible() for i in (0, 11, 12, 23)] == [True, True, False, False]
    page.click("#table-budget .all-rows")
    assert rows.nth(23).is_visible()
    page.click("#table-budget .all-rows")
    assert not rows.nth(23).is_visible()


# ---------------------------------------------------------------------------------- samples


def test_filters(visit, content):
    """Each by itself: the count, the rows and the page's number are those of what fits."""
    page = visit("samples")
    filters: list[tuple[str, str, Callable[[Sample], bool]]] = [
        ("subject", "MOSA (paper)", lambda s: s.subject == "MOSA (paper)"),
        ("attack", TITLES["prefill"], lambda s: s.attack == "prefill"),
        ("category", "kilns", lambda s: s.category == "kilns"),
        ("case_set", "harmless", lambda s: s.case_set == "harmless"),
        ("seed", "1", lambda s: s.seed == 1),
        ("outcome", "succeeded", lambda s: outcome_of(s, FIRST) == "succeeded"),
        ("outcome", "complied", lambda s: outcome_of(s, FIRST) == "complied"),
    ]
    for column, label, fits in filters:
        page.select_option(f"[data-column={column}]", label=label)
        wanted = [i for i, sample in enumerate(content.samples) if fits(sample)]
        assert count(page) == len(wanted) > 0, column
        ids = page.eval_on_selector_all("#list li", "rows => rows.map((row) => row.id)")
        assert ids == [f"sample-{i}" for i in wanted[:20]]
        assert f"{min(20, len(wanted))} of {len(wanted)}" in page.inner_text("#page-number")
        page.select_option(f"[data-column={column}]", label="all")


def test_filters_together_search_and_reset(visit, content):
    """Filters narrow each other; an outcome that another judge never gives is let go."""
    page = visit("samples")
    page.fill("#search", "AMBER")
    assert count(page) == sum("amber" in s.request for s in content.samples)
    choose_judge(page, "samples", SECOND)
    page.select_option("[data-column=outcome]", label="unscored")
    amber = [s for s in content.samples if "amber" in s.request]
    assert count(page) == sum(s.outcomes.get(SECOND) == "unscored" for s in amber) > 0
    choose_judge(page, "samples", FIRST)
    assert count(page) == len(amber)
    page.select_option("[data-column=subject]", label="Original")
    assert count(page) == sum(s.subject == "Original" for s in amber) > 0
    page.fill("#search", "no such thing")
    assert page.inner_text("#list") == "No sample fits these filters."
    assert not page.is_visible("#detail")
    page.click("text=Clear filters")
    assert count(page) == len(content.samples)
    assert page.input_value("#search") == ""


def test_paging_and_keys_of_the_list(visit, content):
    """Buttons turn pages; arrows, Page, Home and End move the choice, also across pages."""
    page = visit("samples")

    def chosen() -> int:
        name = page.get_attribute("#list", "aria-activedescendant")
        assert page.get_attribute(f"#{name}", "aria-selected") == "true"
        number = int(name.removeprefix("sample-"))
        sample = content.samples[number]
        attack = TITLES.get(sample.attack, sample.attack)
        assert page.inner_text("#detail h3") == f"{sample.subject}: {attack}, {sample.case}"
        return number

    assert page.is_disabled("#previous")
    page.click("#next")
    assert chosen() == 20
    page.click("#previous")
    assert chosen() == 0
    page.focus("#list")
    for key, place in (
        ("ArrowDown", 1),
        ("PageDown", 21),
        ("ArrowUp", 20),
        ("ArrowUp", 19),
        ("End", 239),
        ("ArrowDown", 239),
        ("PageUp", 219),
        ("Home", 0),
    ):
        page.keyboard.press(key)
        assert chosen() == place
    page.keyboard.press("End")
    assert page.is_disabled("#next")
    page.click("#list li:nth-child(3)")
    assert chosen() == 222


def words(page, number: int = 1) -> list[str]:
    return page.locator(f"#detail .response:nth-of-type({number}) .t").all_text_contents()


def shown_tokens(sample: Sample) -> list[str]:
    """As they should be read: end tokens as one word and then dots."""
    response = sample.responses[0]
    ends = set(response.end_positions)
    assert response.tokens is not None
    return [
        ("·" if i - 1 in ends else "end") if i in ends else token
        for i, token in enumerate(response.tokens)
    ]


def test_words_are_hidden_until_asked_for(visit, content):
    """By sample, by key, and for all; the prompt is there, and nothing of it makes a tag."""
    page = visit("samples")
    assert set(words(page)) <= {"", "·"}
    said = page.locator("#detail .said")
    assert said.all_inner_texts()[1].endswith(f"direct {SECRET} 0")
    assert said.all_inner_texts()[2] == "…"
    page.click("#detail .show")
    assert said.all_inner_texts()[2] == EARLIER
    assert words(page) == shown_tokens(content.samples[0])
    assert HOSTILE in words(page)
    assert page.locator("#detail img, #detail script").count() == 0
    page.focus("#list")
    page.keyboard.press("ArrowDown")
    assert set(words(page)) <= {"", "·"}
    page.keyboard.press("Enter")
    assert words(page) == shown_tokens(content.samples[1])
    page.keyboard.press("Enter")
    assert set(words(page)) <= {"", "·"}
    page.check("#show-all")
    page.focus("#list")
    page.keyboard.press("End")
    assert words(page) == shown_tokens(content.samples[-1])
    page.uncheck("#show-all")
    assert set(words(page)) <= {"", "·"}


def test_tokens_show_step_pinning_and_ends(visit, content):
    """Colours follow the steps; pinned, end and unread tokens differ by more than colour."""
    page = visit("samples")
    page.select_option("[data-column=attack]", label=TITLES["prefill"])
    page.click("#detail .show")
    sample = next(s for s in content.samples if s.attack == "prefill")
    response = sample.responses[0]
    classes = page.eval_on_selector_all("#detail .t", "all => all.map((t) => [...t.classList])")
    titles = page.eval_on_selector_all("#detail .t", "all => all.map((t) => t.title)")
    num_steps = max(response.commit_step) + 1
    first_end = min(response.end_positions)
    for i, step in enumerate(response.commit_step):
        colour = "pinned" if step < 0 else f"step-{step * 8 // num_steps}"
        assert colour in classes[i]
        assert ("end" in classes[i]) == (i in response.end_positions)
        assert ("unread" in classes[i]) == (i > first_end and i not in response.end_positions)
        when = "set by the attacker" if step < 0 else f"step {step + 1} of {num_steps}"
        assert titles[i] == f"token {i + 1}, {when}"
    style = "t => { const s = getComputedStyle(t); return [s.textDecorationLine, s.borderRadius] }"
    assert page.eval_on_selector("#detail .pinned", style)[0] == "underline"
    assert page.eval_on_selector("#detail .unread:not(.end)", style)[0] == "line-through"
    assert page.eval_on_selector("#detail .end", style)[1] == "99px"


def masked(page) -> list[int]:
    classes = page.eval_on_selector_all("#detail .t", "all => all.map((t) => t.className)")
    return [i for i, name in enumerate(classes) if "mask" in name.split()]


def test_slider_goes_through_the_denoising(visit, content):
    """After k steps exactly the tokens of later steps are masks; arrows move it by one step."""
    page = visit("samples")
    steps = content.samples[0].responses[0].commit_step
    num_steps = max(steps) + 1
    slider = page.locator("#detail input[type=range]")
    assert masked(page) == []
    for key, after in (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("End", num_steps)):
        slider.press(key)
        assert masked(page) == [i for i, step in enumerate(steps) if step >= after]
        assert page.inner_text("#detail output") == f"step {after} of {num_steps}"
        written = sum(step < after for step in steps)
        assert slider.get_attribute("aria-valuetext") == (
            f"step {after} of {num_steps}, {written} of {len(steps)} tokens written"
        )


def test_play_and_pause(visit, content):
    page = visit("samples")
    num_steps = max(content.samples[0].responses[0].commit_step) + 1
    slider, button = (
        page.locator("#detail input[type=range]"),
        page.locator("#detail .player button"),
    )
    button.click()
    assert "Pause" in button.inner_text()
    until(page, "document.querySelector('#detail input').value >= 3")
    button.click()
    held = int(slider.input_value())
    assert 3 <= held < num_steps
    assert "Play" in button.inner_text()
    page.wait_for_timeout(300)
    assert int(slider.input_value()) == held
    slider.evaluate(f"s => {{ s.value = {num_steps - 2}; s.dispatchEvent(new Event('input')) }}")
    button.click()
    until(page, f"document.querySelector('#detail input').value == {num_steps}")
    until(page, "document.querySelector('#detail .player button').textContent.includes('Play')")
    assert masked(page) == []


def test_less_motion_gets_still_pictures(visit):
    page = visit("samples", reduced_motion="reduce")
    page.evaluate("window.seen = []")
    page.evaluate(
        """() => { const set = window.setInterval;
          window.setInterval = (f, pause) => { window.seen.push(pause); return set(f, 1); } }"""
    )
    values = page.evaluate_handle("[]")
    page.evaluate(
        """(values) => {
          const output = document.querySelector("#detail output");
          new MutationObserver(() => values.push(output.textContent))
            .observe(output, { childList: true }); }""",
        values,
    )
    page.click("#detail .player button")
    until(page, "document.querySelector('#detail .player button').textContent.includes('Play')")
    assert page.evaluate("window.seen")[0] >= 500
    assert len(values.json_value()) <= 8
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


def test_several_responses_of_a_sample(visit, content):
    page = visit("samples")
    page.select_option("[data-column=attack]", label="second_language")
    page.click("#detail .show")
    assert page.locator("#detail h4").all_inner_texts() == ["Response 1", "Response 2"]
    assert page.locator("#detail .player").count() == 2


def test_redacted_page_has_blocks_alone(visit):
    page = visit("redacted")
    assert page.locator("#detail .show, #show-all, #detail .turns, #detail .request").count() == 0
    assert set(words(page)) == {"", "·"}
    widths = page.eval_on_selector_all("#detail .t", "all => all.map((t) => t.offsetWidth)")
    assert len(set(widths)) == 1
    page.fill("#search", "copper")
    assert 0 < count(page) < 40
    assert SECRET not in page.content()


def test_cut_page_says_which_samples_have_text(visit, content):
    """The counts are those of all samples; one filter leaves those with text."""
    page = visit("cut")
    note = re.search(r"has the responses of (\d+) of them", page.inner_text("#samples"))
    assert note
    assert count(page) == len(content.samples)
    page.check("#with-text")
    assert count(page) == int(note[1]) < len(content.samples)
    assert page.locator("#detail .response").count() >= 1
    page.uncheck("#with-text")
    for _ in content.samples:
        if page.locator("#detail .response").count() == 0:
            break
        page.locator("#list").press("ArrowDown")
    assert "not its response" in page.inner_text("#detail")


def test_ten_thousand_samples_stay_quick(visit):
    """The list holds one page of rows; typing filters in well under a second."""
    page = visit("large")
    milliseconds = page.evaluate(
        """() => { const search = document.getElementById("search"), start = performance.now();
          search.value = "amber"; search.dispatchEvent(new Event("input"));
          return performance.now() - start; }"""
    )
    assert milliseconds < 500
    assert 0 < count(page) < 10_000
    assert page.locator("#list li").count() == 20
    assert page.locator("#browser *").count() < 700


# ------------------------------------------------------------------- schemes, sizes, keys, paper


def background(page) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


@pytest.mark.parametrize("system", ["light", "dark"])
def test_colours_follow_the_system_and_the_switch(visit, system):
    page = visit(color_scheme=system)
    colours = {"light": "rgb(251, 251, 250)", "dark": "rgb(19, 20, 24)"}
    assert background(page) == colours[system]
    for theme in ("dark", "light", "auto"):
        page.click(f'[name=theme][value="{theme}"]', force=True)
        assert background(page) == colours.get(theme, colours[system])
    stroke = "getComputedStyle(document.querySelector('#figure-prefill text')).fill"
    assert (
        page.evaluate(stroke) == {"light": "rgb(93, 96, 104)", "dark": "rgb(162, 166, 175)"}[system]
    )


def test_words_of_tables_stay_whole(visit):
    """On a wide screen; what is longer than 16 letters may go on in the next line."""
    page = visit()
    page.eval_on_selector_all("details", "all => all.forEach((details) => (details.open = true))")
    broken, num_words = page.evaluate(
        """() => {
          const broken = [];
          let numWords = 0;
          for (const cell of document.querySelectorAll("main th, main td")) {
            if (!cell.checkVisibility()) continue;
            const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
            for (let text; (text = texts.nextNode()); ) {
              for (const word of text.data.matchAll(/[A-Za-z]{2,16}/g)) {
                const range = document.createRange();
                range.setStart(text, word.index);
                range.setEnd(text, word.index + word[0].length);
                numWords += 1;
                if (range.getClientRects().length > 1) broken.push(word[0]);
              }
            }
          }
          return [broken, numWords];
        }"""
    )
    assert broken == [] and num_words > 500


def test_body_never_scrolls_sideways(visit):
    """Wide tables scroll in their own boxes, which the keyboard can reach, and on a phone they are
    cards; charts stay legible."""
    page = visit()
    page.check("#show-all")
    page.eval_on_selector_all(".numbers", "all => all.forEach((details) => (details.open = true))")
    for width in (1280, 768, 390, 360):
        page.set_viewport_size({"width": width, "height": 700})
        page.wait_for_timeout(50)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        wide = page.evaluate(
            """() => [...document.querySelectorAll(".scroll")]
              .filter((box) => box.checkVisibility() && box.scrollWidth > box.clientWidth)
              .map((box) => [box.tabIndex, getComputedStyle(box).overflowX])"""
        )
        assert all(box == [0, "auto"] for box in wide)
        assert wide == [] or width > 600
    smallest = page.evaluate(
        """() => Math.min(...[...document.querySelectorAll("svg.chart text")].map((text) =>
          parseFloat(getComputedStyle(text).fontSize)
          * text.ownerSVGElement.getBoundingClientRect().width / 380))"""
    )
    assert smallest >= 8.5
    assert (
        page.evaluate(
            """() => [...document.querySelectorAll("main *")].filter((e) => e.checkVisibility()
          && !e.closest(".unseen, thead, svg") && e.getBoundingClientRect().right > 361).length"""
        )
        == 0
    )


def test_contents_on_a_phone(visit):
    """A menu that closes behind the choice and on Escape."""
    page = visit(viewport={"width": 390, "height": 700})
    assert not page.is_visible(".side")
    page.click("#contents summary")
    page.click("#contents a:text('Budget')")
    assert not page.is_visible("#contents nav")
    until(page, "Math.abs(document.getElementById('budget').getBoundingClientRect().top) < 120")
    page.click("#contents summary")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "A"
    page.keyboard.press("Escape")
    assert not page.is_visible("#contents nav")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"


def test_contents_beside_the_page_follow_the_reader(visit):
    page = visit()
    links = page.locator(".side a")
    titles = [link.inner_text() for link in links.all()]
    assert titles[:4] == ["At a glance", "Attacks", "Samples", "Scoreboard"]
    page.click(".side a:text('Budget')")
    page.wait_for_selector(".side a[aria-current]:text('Budget')")


def test_every_control_is_reached_with_the_tabulator(visit):
    """In the order of the page, and what has the focus can be seen."""
    page = visit()
    page.evaluate("document.querySelector('.skip').focus()")
    reached, unseen = [], []
    for _ in itertools.repeat(None, 400):
        found = page.evaluate(
            """() => { const e = document.activeElement;
              const shown = e.matches(".segments input") ? e.nextElementSibling : e;
              const style = getComputedStyle(shown);
              return [e === document.body, e.id || e.name || e.dataset.column || e.dataset.save
                || e.classList[0] || e.textContent, style.outlineStyle !== "none"
                && parseFloat(style.outlineWidth) >= 2 || e.matches(".skip")]; }"""
        )
        if found[0]:
            break
        reached.append(found[1])
        if not found[2]:
            unseen.append(found[1])
        page.keyboard.press("Tab")
    assert unseen == []
    wanted = ["skip", "unfold", "theme", "showcase-play", "showcase-slider", "judge-attacks"]
    wanted += ["base", "attacks-truth-2-world-0", "sort", "to-samples", "judge-samples"]
    wanted += ["subject", "attack", "threat", "outcome", "category", "case_set", "seed"]
    wanted += ["search", "beside", "show-all", "list", "next", "show", "judge-scoreboard"]
    wanted += ["usefulness", "all-rows"]
    places = [reached.index(name) for name in wanted]
    assert places == sorted(places)
    assert "Numbers of this chart" in reached


def test_labels_and_roles(visit):
    """Every control has a name, every chart a role, a title and a description."""
    page = visit()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select")].filter((e) => !(
          e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length)).length"""
    )
    assert nameless == 0
    images = page.locator("svg.chart[role=img]").all()
    assert len(images) == 7
    assert "Harm by position" in images[1].evaluate("svg => svg.textContent")
    assert page.get_by_role("listbox", name="Samples").count() == 1
    assert page.get_by_role("radio", name="refusal", exact=True).count() == 3
    assert page.get_by_role("slider", name="Denoising step").count() == 1
    arrows = page.get_by_role("img", name="told of prefill: MOSA (paper) and Original")
    assert arrows.first.inner_text() == "\u25bc"


def test_paper_has_all_tables_and_no_controls(visit, content):
    """Light, whatever the scheme; no table wider than the sheet; all rows, folded or not; of the
    comparisons those with the chosen subject."""
    page = visit(color_scheme="dark", folded=True)
    choose_judge(page, "attacks", SECOND)
    assert page.pdf(format="A4")[:5] == b"%PDF-"
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 1000})
    shown = visible_tables(page)
    assert set(shown) == {
        f"table-{name}"
        for name, table in named_tables(content)
        if table.name not in {f.name for s in content.sections for f in s.figures} | {"trade-off"}
        and table.base in ("", next(iter(SUBJECTS)))
    }
    assert page.locator("#table-budget tbody tr").nth(23).is_visible()
    assert page.locator("#table-attacks-refusal-1 .judge").is_visible()
    for control in (
        ".bar",
        ".side",
        ".judge-switch",
        ".saves",
        "#browser",
        ".all-rows",
        ".numbers",
    ):
        assert not any(element.is_visible() for element in page.locator(control).all()), control
    assert "on the screen" in page.inner_text("#samples")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 29, 33)"
    beyond = page.evaluate(
        """() => [...document.querySelectorAll("main *")].filter((e) => e.checkVisibility()
          && !e.closest(".unseen") && e.getBoundingClientRect().right > 701).length"""
    )
    assert beyond == 0


def test_page_can_be_read_without_javascript(visit, content):
    page = visit(ready=False, java_script_enabled=False)
    for judge in JUDGES:
        assert page.locator(f'.table-card[data-judge="{judge}"] .judge').first.is_visible()
    page.click("#budget summary")
    assert page.locator("#table-budget tbody tr").nth(23).is_visible()
    for control in (".judge-switch", ".compare", ".saves", "#browser", ".theme", "#unfold"):
        assert not any(element.is_visible() for element in page.locator(control).all()), control
    assert "needs JavaScript" in page.inner_text("#samples noscript")
    assert page.is_visible(".side a")
    assert all(subject in page.inner_text("#verdict") for subject in SUBJECTS)
    assert page.locator(".tile b").all_inner_texts()[:3] == ["0.90", "0.98", "1.00"]
