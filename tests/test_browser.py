"""The pages in a real browser, which reaches nothing but them: every control, link and theme, from a
server and from a folder.

What is asserted of every page that a test opens: no request leaves it, and nothing fails on its console.
"""

import functools
import gzip
import http.server
import importlib.util
import json
import re
import shutil
import threading
from pathlib import Path
from urllib.parse import urldefrag, urlsplit

import pytest

from repro import profiles
from repro.book import explorer, rendering
from repro.book.panels import epochs

TOOLS = all(map(importlib.util.find_spec, ("playwright", "axe_playwright_python", "jupyter_book")))
CHROMIUM = rendering.browser()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not TOOLS, reason='needs pip install "repro[book,browser]"'),
    pytest.mark.skipif(not CHROMIUM, reason="needs a Chromium on the PATH"),
]
PHONE = {"width": 390, "height": 800}
RESET = "book/chapters/07_reset.html"
AXE = json.dumps(
    {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"], "resultTypes": ["violations"], "preload": False}
)
SHOWN, DEPTH = ".explorer-panel:not([hidden])", ".explorer [type=range]"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def server(smoke_book):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=smoke_book)
    ) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}/"
        serving.shutdown()


@pytest.fixture(params=["file", "http"])
def site(request, smoke_book) -> str:
    """Where the book begins: in its folder, or on a server."""
    return f"{smoke_book.as_uri()}/" if request.param == "file" else request.getfixturevalue("server")


@pytest.fixture
def open_page(browser):
    """Opens a blank page whose requests to anywhere else are refused, and fail the test as errors do."""
    outside, errors, contexts = [], [], []

    def route(route):
        if re.match(r"file:|data:|http://127\.0\.0\.1:", route.request.url):
            route.continue_()
        else:
            outside.append(route.request.url)
            route.abort()

    def opened(**settings):
        contexts.append(browser.new_context(**settings))
        contexts[-1].route("**/*", route)
        page = contexts[-1].new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        return page

    yield opened
    for context in contexts:
        context.close()
    assert outside == []
    assert errors == []


def names(folder: Path) -> list[str]:
    """All pages but the first, which only leads to `book/index.html`."""
    found = sorted(path.relative_to(folder).as_posix() for path in folder.glob("book/**/*.html"))
    return [*found, "search.html"]


@pytest.fixture
def reset_explorer(smoke_results, monkeypatch):
    """The explorer of the records that the pages were made from."""
    monkeypatch.setenv("REPRO_RESULTS", str(smoke_results))
    return explorer.of("reset", profiles.profile("smoke"))


def test_every_link_leads_to_its_place_and_no_page_scrolls_sideways_on_a_phone(site, open_page):
    page, found, queue = open_page(viewport=PHONE), {}, [f"{site}book/index.html"]
    while queue:
        url = queue.pop()
        page.goto(url)
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["width"], f"{url} is {width} px wide"
        ids = set(page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)"))
        links = page.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.href)")
        found[url] = ids, [link for link in links if link.startswith(site)]
        targets = {urldefrag(link)[0] for link in found[url][1]}
        queue += sorted(t for t in targets if t.endswith(".html") and t not in found and t not in queue)
    assert {f"{site}book/chapters/{name}.html" for name in ("01_warm_start", "10_scorecard")} <= set(found)
    files = {
        link for _, links in found.values() for link in links if not urldefrag(link)[0].endswith(".html")
    }
    assert any(link.endswith("07_reset.runs.csv") for link in files)
    assert any(link.endswith("07_reset.ipynb") for link in files)
    for link in files - {site}:
        assert (
            page.request.get(link).ok if link.startswith("http") else Path(link[len("file://") :]).exists()
        ), link
    for url, (_, links) in found.items():
        for target, place in map(urldefrag, links):
            assert not place or place in found[target][0], f"{url} links to {target}#{place}"


def test_a_subset_shows_the_numbers_of_the_records(site, open_page, reset_explorer):
    page = open_page()
    page.goto(site + RESET)
    boxes, shown = page.locator(".explorer [type=checkbox]"), page.locator(SHOWN)
    panels = reset_explorer.panels()
    chosen = [(modules,) for modules in ("", "6", "56", "3456", "123456", "1", "12", "246", "135")]
    assert {panels[choice] is None for choice in chosen} == {True, False}
    for choice in chosen:
        for module in range(6):
            boxes.nth(module).set_checked(str(module + 1) in choice[0])
        panel = panels[choice]
        said = page.locator("[role=status]").inner_text()
        assert said.startswith(f"{reset_explorer.title(choice)}: ")
        assert (f"gap {panel.gap} percentage points" if panel else "not recorded") in said
        if panel is None:
            assert shown.locator("code").inner_text() == reset_explorer.command(choice)
            continue
        assert shown.locator(".explorer-gap").inner_text() == str(panel.gap)
        cells = shown.locator("tbody tr").evaluate_all(
            "rows => rows.map(r => [...r.cells].map(c => c.innerText))"
        )
        assert cells == [
            [name, *(epochs(e, panel.seeds[name]) for e in found)] for name, found in panel.reached.items()
        ]
        assert shown.locator("polyline").count() == 2 * len(panel.conditions)
        assert page.locator(DEPTH).input_value() == str(len(choice[0]))


def test_depth_by_keyboard_and_by_playing(site, open_page, reset_explorer):
    page = open_page()
    page.goto(site + RESET)
    slider, title = page.locator(DEPTH), page.locator(f"{SHOWN} strong")
    assert title.inner_text() == "Modules 4, 5 and 6 re-initialised"
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert title.inner_text() == "Modules 5 and 6 re-initialised"
    assert slider.get_attribute("aria-valuetext") == "2"
    page.get_by_label("first", exact=True).check()
    assert title.inner_text() == "Modules 1 and 2 re-initialised"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "range"
    page.clock.install()
    play = page.get_by_role("button", name="Play: how many")
    play.press("Enter")
    seen = []
    for _ in range(4):
        page.clock.run_for(1000)
        seen.append(page.locator(".explorer-slider output").inner_text())
    assert seen == ["3", "4", "5", "6"]
    assert play.inner_text() == "Play"
    assert title.inner_text() == "All six modules re-initialised"
    play.click()
    assert title.inner_text() == "No module re-initialised"
    play.click()
    page.clock.run_for(5000)
    assert title.inner_text() == "No module re-initialised", "it went on after Pause"


def test_menus_and_sliders_of_the_other_explorers(site, open_page, smoke_results, monkeypatch):
    monkeypatch.setenv("REPRO_RESULTS", str(smoke_results))
    page = open_page(viewport=PHONE)
    for study, name, keys in (
        ("pretraining_length", "03_pretraining_length", ("RMSprop", "1")),
        ("smooth_transition", "04_smooth_transition", ("0.1",)),
        ("capacity", "06_capacity", ("4", "2")),
    ):
        found = explorer.of(study, profiles.profile("smoke"))
        page.goto(f"{site}book/chapters/{name}.html")
        controls = page.locator("[data-control] [type=range], select[data-control]")
        for control, key in zip(controls.all(), keys, strict=True):
            if values := control.get_attribute("data-values"):
                control.fill(str(values.split("|").index(key)))
            else:
                control.select_option(key)
        assert page.locator(f"{SHOWN} .explorer-gap").inner_text() == str(found.panels()[keys].gap)


def test_without_scripts_the_page_shows_a_default_and_all_gaps(site, open_page, reset_explorer):
    page = open_page(java_script_enabled=False)
    page.goto(site + RESET)
    assert page.locator(SHOWN).count() == 1
    assert page.locator(DEPTH).is_disabled()
    recorded = [panel for panel in reset_explorer.panels().values() if panel]
    assert page.locator(".explorer noscript tbody tr").count() == len(recorded)


def test_a_chapter_is_printed(smoke_book, tmp_path):
    (tmp_path / "book" / "chapters").mkdir(parents=True)
    shutil.copy(smoke_book / RESET, tmp_path / RESET)
    rendering.print_pdfs(tmp_path)
    assert (tmp_path / RESET).with_suffix(".pdf").read_bytes().startswith(b"%PDF-")


def test_search_and_theme(site, open_page):
    page = open_page()
    page.goto(f"{site}index.html")
    page.wait_for_url(f"{site}book/index.html")
    seen = set()
    for _ in range(3):
        page.locator("button.theme-switch-button:visible").first.click()
        seen.add(page.locator("html").get_attribute("data-mode"))
    assert seen == {"light", "dark", "auto"}
    page.goto(f"{site}search.html?q=sharpness")
    page.locator("#search-results li a").first.wait_for()
    links = page.locator("#search-results li a").evaluate_all("links => links.map(a => a.href)")
    assert any("08_two_phases" in link for link in links)


def test_text_is_painted_while_scripts_are_on_their_way(server, open_page):
    page, held = open_page(), []
    page.route("**/*.js*", lambda route: held.append(route))
    page.goto(server + RESET, wait_until="commit")
    page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
    assert held and page.locator("article h1").is_visible()
    while held:
        held.pop().continue_()
        page.wait_for_timeout(10)
    page.wait_for_load_state("load")


def test_a_page_weighs_less_than_a_megabyte_and_a_half_compressed(server, open_page, smoke_book):
    page, asked = open_page(viewport=PHONE), set()
    page.on("request", lambda request: asked.add(urlsplit(request.url).path.lstrip("/")))
    for name in names(smoke_book):
        asked.clear()
        page.goto(server + name)
        page.evaluate("document.fonts.ready.then(() => null)")
        assert name in asked and len(asked) > 10
        weight = sum(len(gzip.compress((smoke_book / path).read_bytes())) for path in asked)
        assert weight < 1_500_000, name


def test_axe_finds_nothing_serious_on_any_page(server, open_page, smoke_book):
    import axe_playwright_python

    axe = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
    serious = {}
    page = open_page()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for name in names(smoke_book) if scheme == "light" else (RESET,):
            page.goto(server + name)
            page.evaluate("Promise.all(document.getAnimations().map(a => a.finished))")
            page.evaluate(axe)
            found = page.evaluate(f"axe.run({AXE})")
            for violation in found["violations"]:
                if violation["impact"] in ("serious", "critical"):
                    for node in violation["nodes"]:
                        serious.setdefault((violation["id"], json.dumps(node["target"])), []).append(name)
    assert not serious, serious
