"""The report in a real browser, where there is a headless Chromium: the table sorts, nothing runs over the page."""

import json
import math
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from spark_seg.evaluation.report.page import Cell, Section, page, paragraph, table

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium to look with")

ROWS = [("b", 2.0), ("image_10", math.nan), ("image_9", 10.0), ("a", -1.0), ("c", 2.0)]


def report(rows: list[tuple[str, float]] = ROWS) -> str:
    cells = [
        [Cell(name, kind="id"), Cell("–" if v != v else f"{v:.1f}", v), str(n)]
        for n, (name, v) in enumerate(rows)
    ]
    grid = table(["image", "score", "missed"], cells, "", (), ["up", "up", "down"])
    wide = table(["a score's name"] * 7, [["1234567890"] * 7])
    parts = [
        Section("images", "Images", f'<div class="scroll">{grid}</div>'),
        Section("wide", "Wide", wide + paragraph("word " * 60)),
    ]
    return page("Sorting", "by pressing heads", parts)


def ask(tmp_path: Path, html: str, script: str, width: int = 1200) -> Any:
    """What `script` returns in the page, as JSON; any error of the page's own scripts is an error here."""
    asked = (
        "<script>window.broken=[];window.onerror=function(m){broken.push(m)}</script>" + "{page}"
        '<pre id="told"></pre><script>var told;try{told=(function(){SCRIPT})()}catch(e){broken.push(""+e)}'
        'document.getElementById("told").textContent=JSON.stringify({told:told,broken:broken})</script>'
    ).replace("SCRIPT", script)
    before, after = html.split("<body>")
    main, end = after.split("</body>")
    path = tmp_path / "page.html"
    path.write_text(before + "<body>" + asked.replace("{page}", main) + "</body>" + end)
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
    ]
    command += [f"--window-size={width},900", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--dump-dom", path.as_uri()]
    found = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HOME": str(tmp_path)},
        check=False,
    )
    match = re.search(r'<pre id="told">(.*?)</pre>', found.stdout, re.S)
    assert match, found.stderr[-500:]
    answer = json.loads(unescape(match[1]))
    assert answer["broken"] == []
    return answer["told"]


PRESS = """
var t=document.querySelector("table.sort"),told=[];
function seen(){return Array.from(t.tBodies[0].rows).map(function(r){return r.cells[2].textContent}).join("")}
told.push([seen(),null]);
[0,0,1,1,1,2,0].forEach(function(i){var h=t.tHead.rows[0].cells[i];h.querySelector("button").click();
told.push([seen(),Array.from(t.tHead.rows[0].cells).map(function(c){return c.getAttribute("aria-sort")})])});
return told;"""


def test_pressing_a_head_sorts_and_pressing_again_turns_the_order(tmp_path: Path) -> None:
    told = ask(tmp_path, report(), PRESS)
    orders = [order for order, _ in told]
    assert orders == [
        "01234",
        "30421",  # a, b, c, image_9, image_10: numbers in names by their value
        "12403",
        "34021",  # -1, then the equal ones as they stood (c, b), 10; no value last
        "24031",  # 10, then c, b as they stood, -1; no value stays last
        "34021",
        "43210",  # pixels: the most first
        "30421",
    ]
    up, down = "ascending", "descending"
    assert [state for _, state in told[1:]] == [
        [up, None, None],
        [down, None, None],
        [None, up, None],
        [None, down, None],
        [None, up, None],
        [None, None, down],
        [up, None, None],
    ]


OVER = """
return [document.documentElement.scrollWidth,window.innerWidth,
Array.from(document.querySelectorAll("th button")).every(function(b){return b.offsetWidth>0})];"""


@pytest.mark.parametrize("width", [1200, 500])
def test_nothing_runs_over_the_page(tmp_path: Path, width: int) -> None:
    needed, there, seen = ask(tmp_path, report(), OVER, width)
    assert there <= width
    assert needed <= there
    assert seen
