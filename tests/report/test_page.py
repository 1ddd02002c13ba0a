"""The page: one file that asks for nothing and in which nothing of others acts."""

import re
import sys
from html.parser import HTMLParser

import pytest

from grpokit.errors import GrpokitError
from grpokit.record import read_record
from grpokit.report import content, to_html

VOID = {"meta", "link", "img", "br", "hr", "input", "source", "path", "use", "rect", "line", "circle"}


class Elements(HTMLParser):
    """All elements with their attributes, whether they are closed, and the page's text."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.found, self.open, self.texts = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def every(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


def page_of(*paths):
    return to_html(content([read_record(path) for path in paths], command="grpokit report"))


def check(page):
    elements = Elements(page)
    assert elements.open == []
    assert not elements.every("script")
    assert not elements.every("img")
    assert not elements.every("link")
    for tag, attrs in elements.found:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "xlink:href", "src", "action", "formaction", "data"):
                assert value.startswith("#"), (tag, name, value)
            assert "url(" not in (value or "") or "url(#" in value
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(meta["content"] for meta in elements.every("meta") if "http-equiv" in meta)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    ids = [attrs["id"] for _, attrs in elements.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    for figure in elements.every("svg"):
        assert figure["role"] == "img"
        assert set(figure["aria-labelledby"].split()) <= set(ids)
    levels = [int(tag[1]) for tag, _ in elements.found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in zip(levels, levels[1:], strict=False))
    assert len(page.encode()) < 1_000_000
    return elements


def test_a_run(run):
    page = page_of(run)
    elements = check(page)
    assert len(elements.every("svg")) == 18
    text = "".join(elements.texts)
    assert "Nothing found." in text
    for title in ("Findings", "Curves", "Completions", "Configuration", "How to reproduce"):
        assert title in text
    # Colours come from the page alone.
    assert not re.search(r"(?:fill|stroke): #", page[page.index("<body>") :])


def test_the_same_run_gives_the_same_bytes(run):
    assert page_of(run) == page_of(run)


def test_two_runs(run, other):
    text = "".join(check(page_of(run, other)).texts)
    assert "Where the configurations differ" in text
    assert "A mean" in text


def test_a_dump_has_no_empty_parts(rows_writer):
    elements = check(page_of(rows_writer("dump.jsonl")))
    assert "Configuration" not in "".join(elements.texts)
    assert len(elements.every("svg")) == 7


def test_what_strangers_wrote_stays_text(hostile):
    page = page_of(hostile)
    text = "".join(check(page).texts)
    assert "<script>document.title='owned'</script>" in text
    assert '"</style><script>1</script>"' in text
    assert "␛[31mred" in text
    assert "abc⟨U+202E⟩gpj.exe" in text
    assert "49" not in re.findall(r"lone.{0,12}", text)
    assert "characters left out" in text
    assert "a line" in text or "cut off" in text
    assert not set("\x1b\x00\x07\x7f\u202e\u2066\u200f\ufeff") & set(page)


def test_many_steps_and_long_texts_fit(writer):
    place = writer("long", steps=3000, names=[f"function{n}" for n in range(9)], texts=["<&\u202e'\"" * 3000])
    check(page_of(place, writer("long2", steps=3000, texts=["😀" * 9000])))


def test_without_its_extra(run, monkeypatch):
    said = content([read_record(run)])
    for name in ("jinja2", "matplotlib"):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, name, None)
            with pytest.raises(GrpokitError, match=r"grpokit\[report\]") as caught:
                to_html(said)
        assert caught.value.kind == "missing_extra"
