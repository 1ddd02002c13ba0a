"""The page in Chromium: nothing runs or leaves it, it fits from 400 to 1,600 pixels, and what is on it can be read."""

import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import threading

import pytest

from grpokit.record import read_record
from grpokit.report import content, to_html

pytestmark = pytest.mark.slow

# What is looked at in the page: its own policy allows no script, so this one is in a frame's parent.
LOOK = """
const frame = document.getElementById("page"), out = {};
frame.onload = () => setTimeout(() => {
  const page = frame.contentDocument, root = page.documentElement, view = frame.contentWindow;
  const luminance = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = view.getComputedStyle(node).backgroundColor;
      if (colour !== "rgba(0, 0, 0, 0)" && !colour.includes("/ 0)")) return colour;
    }
    return DARK ? "rgb(18, 18, 18)" : "rgb(255, 255, 255)";
  };
  out.pale = [];
  const walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !parent.getClientRects().length) continue;
    const style = view.getComputedStyle(parent), drawn = parent.ownerSVGElement || parent.tagName === "svg";
    const colour = drawn ? style.fill : style.color;
    if (!colour.startsWith("rgb")) continue;
    const [a, b] = [luminance(colour), luminance(behind(parent))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) out.pale.push([walker.currentNode.textContent.trim().slice(0, 30), colour, behind(parent), ratio]);
  }
  out.width = [root.scrollWidth, root.clientWidth];
  out.light = luminance(behind(page.body)) > 0.5;
  out.title = page.title;
  out.outer = document.title;
  out.headings = [...page.querySelectorAll("h1,h2,h3,h4,h5,h6")].map(h => +h.tagName[1]);
  out.unnamed = [...page.querySelectorAll("svg")]
    .filter(s => s.getAttribute("role") !== "img" || !s.querySelector("title")).length;
  out.figures = page.querySelectorAll("svg").length;
  out.scripts = page.querySelectorAll("script").length;
  document.getElementById("told").textContent = JSON.stringify(out);
}, 200);
"""


class Asked(http.server.SimpleHTTPRequestHandler):
    paths: list = []

    def do_GET(self):
        self.paths.append(self.path)
        super().do_GET()

    def log_message(self, *_):
        pass


def chromium():
    found = shutil.which("chromium")
    if found is None:
        pytest.fail("Chromium is not installed: apt-get install chromium")
    return found


def browse(place, *words):
    command = [chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={place / 'profile'}"]
    run = subprocess.run([*command, *words], capture_output=True, timeout=120, check=True)
    return run.stdout.decode("utf-8", "replace")


def looked(place, page, width, *, dark=False):
    """What the page says of itself in a frame of that width, and the paths that were asked for."""
    (place / "report.html").write_text(page, encoding="utf-8")
    script = LOOK.replace("DARK", "true" if dark else "false")
    frame = f'<iframe id="page" src="report.html" style="width:{width}px;height:900px;border:0"></iframe>'
    (place / "look.html").write_text(f'<pre id="told"></pre>{frame}<script>{script}</script>', encoding="utf-8")
    Asked.paths = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Asked, directory=place))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        scheme = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
        url = f"http://127.0.0.1:{server.server_port}/look.html"
        text = browse(place, *scheme, "--window-size=1700,1000", "--virtual-time-budget=20000", "--dump-dom", url)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    told = re.search(r'<pre id="told">(.*?)</pre>', text, re.DOTALL)
    assert told and told[1], text[:2000]
    return json.loads(html.unescape(told[1])), set(Asked.paths)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 900, 1600])
def test_it_fits_and_can_be_read(run, other, tmp_path, width, dark):
    found, asked = looked(tmp_path, to_html(content([read_record(run), read_record(other)])), width, dark=dark)
    assert found["width"][0] <= found["width"][1] <= width
    assert found["light"] is not dark
    assert found["pale"] == []
    assert found["unnamed"] == 0 < found["figures"]
    assert found["headings"][0] == 1
    assert found["headings"].count(1) == 2  # a run each
    steps = [later - earlier for earlier, later in zip(found["headings"], found["headings"][1:], strict=False)]
    assert max(steps) == 1
    assert asked <= {"/look.html", "/report.html", "/favicon.ico"}


@pytest.mark.parametrize("width", [400, 1600])
def test_what_strangers_wrote_does_nothing(hostile, tmp_path, width):
    found, asked = looked(tmp_path, to_html(content([read_record(hostile)])), width)
    assert "owned" not in found["title"] + found["outer"]
    assert found["scripts"] == 0
    assert found["width"][0] <= found["width"][1] <= width
    assert asked <= {"/look.html", "/report.html", "/favicon.ico"}


def test_the_check_sees_a_page_that_does_not_hold(tmp_path):
    """A page with a script, a request and pale text is told from one without."""
    bad = '<title>a</title><p style="color:#aaa;width:2000px">pale</p><script>document.title="owned"</script>'
    found, asked = looked(tmp_path, bad + '<img src="/beacon.png">', 400)
    assert found["title"] == "owned"
    assert found["pale"][0][0] == "pale"
    assert found["width"][0] > found["width"][1]
    assert "/beacon.png" in asked
