"""The page in a real browser: nothing runs, nothing is asked for, nothing is wider than the screen or hard to read."""

import os
from pathlib import Path

import pytest

from grpokit.doctor import RULES
from grpokit.record import read_record
from grpokit.report import content, to_html

from .browser import Browser
from .test_content import FOUND

pytestmark = pytest.mark.slow
WIDTHS = (400, 900, 1600)

# Of each element with a text of its own: the contrast of its colour with what is painted behind it (WCAG 2.2).
CONTRAST = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = x => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => [r, g, b].map(x => linear(x / 255))
    .reduce((sum, x, at) => sum + x * [.2126, .7152, .0722][at], 0);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgb(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const bad = [];
  for (const element of document.querySelectorAll('body *')) {
    if (element.matches('title, desc, style')) continue;
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
    const style = getComputedStyle(element);
    const colour = rgb(element.namespaceURI.endsWith('svg') ? style.fill : style.color);
    const [a, b] = [light(colour), light(behind(element))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5 || colour[3] !== 255) bad.push([element.tagName, element.textContent.slice(0, 40), ratio, colour]);
  }
  return bad;
})()
"""
# Texts of a figure that lie on each other or outside of it.
CLASHES = """
[...document.querySelectorAll('svg')].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  const boxes = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
  const out = boxes.filter(([, box]) => box.left < frame.left - 3 || box.right > frame.right + 3 ||
    box.top < frame.top - 3 || box.bottom > frame.bottom + 3).map(([name]) => 'outside: ' + name);
  for (let i = 0; i < boxes.length; i++) for (let j = 0; j < i; j++) {
    const [a, b] = [boxes[i][1], boxes[j][1]];
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (wide > 1 && high > .45 * Math.min(a.height, b.height)) out.push(boxes[i][0] + ' on ' + boxes[j][0]);
  }
  return out.map(what => svg.querySelector('title').textContent + ': ' + what);
})
"""
OUTLINE = """
({
  levels: [...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map(head => +head.tagName[1]),
  empty: [...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].filter(head => !head.textContent.trim()).length,
  figures: [...document.querySelectorAll('svg')].map(svg => svg.getAttribute('aria-labelledby').split(' ')
    .map(id => document.getElementById(id).textContent.trim().length)),
  language: document.documentElement.lang,
  title: document.title,
  ids: [...document.querySelectorAll('[id]')].map(x => x.id),
  cells: [...document.querySelectorAll('th')].filter(cell => !cell.scope).length,
  main: document.querySelectorAll('main').length,
  scripts: document.scripts.length,
})
"""


@pytest.fixture(scope="module")
def browser():
    made = Browser()
    yield made
    made.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory, run, other, hostile):
    place = tmp_path_factory.mktemp("pages")
    long = "x" * 1_000_000
    dump = place / "dump.jsonl"
    dump.write_text(
        "".join(f'{{"group_id": {n // 2}, "reward": {n % 2}, "text": "{long[: n * 999]}"}}\n' for n in range(40))
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(RULES, "D001", lambda record: [FOUND] if record.path in (run, hostile) else [])
        made = {
            "run": to_html(content([read_record(run)], command="grpokit report")),
            "two": to_html(content([read_record(run), read_record(other)])),
            "hostile": to_html(content([read_record(hostile)])),
            "dump": to_html(content([read_record(dump)])),
        }
    for name, page in made.items():
        (place / f"{name}.html").write_text(page)
    return {name: place / f"{name}.html" for name in made}


@pytest.mark.parametrize("name", ["run", "two", "hostile", "dump"])
def test_nothing_runs_and_nothing_is_asked_for(browser, pages, name):
    events = browser.open(pages[name], 900)
    assert [e["params"]["request"]["url"] for e in events if e.get("method") == "Network.requestWillBeSent"] == [
        pages[name].as_uri()
    ]
    said = [
        e
        for e in events
        if e.get("method") in ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    ]
    assert said == []
    outline = browser.ask(OUTLINE)
    assert outline["title"].startswith("grpokit report: ")
    assert outline["scripts"] == 0
    assert browser.ask("document.querySelectorAll('img, iframe, object, embed, form, link, a').length") == 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["run", "two", "hostile", "dump"])
def test_it_fits_and_can_be_read(browser, pages, name, dark):
    for width in WIDTHS:
        browser.open(pages[name], width, dark=dark)
        browser.ask("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert browser.ask("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
        assert browser.ask(CLASHES) == []
        # GRPOKIT_SHOTS=DIR leaves them to be looked at.
        if "GRPOKIT_SHOTS" in os.environ:
            shade = "dark" if dark else "light"
            browser.screenshot(Path(os.environ["GRPOKIT_SHOTS"]) / f"{name}-{width}-{shade}.png")
    assert browser.ask(CONTRAST) == []


@pytest.mark.parametrize("name", ["run", "two", "hostile", "dump"])
def test_it_can_be_heard(browser, pages, name):
    browser.open(pages[name], 900)
    outline = browser.ask(OUTLINE)
    levels = outline["levels"]
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in zip(levels, levels[1:], strict=False))
    assert (outline["empty"], outline["cells"], outline["main"], outline["language"]) == (0, 0, 1, "en")
    assert all(title > 5 and sentence > 30 for title, sentence in outline["figures"])
    assert len(outline["ids"]) == len(set(outline["ids"]))


def test_it_prints(browser, pages):
    browser.open(pages["run"], 900, dark=True, media="print")
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.ask(CONTRAST) == []
    printed = browser.call("Page.printToPDF")["data"]
    assert len(printed) > 10_000
