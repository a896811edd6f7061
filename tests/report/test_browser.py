"""The page in a real browser: nothing overlaps, is cut off or scrolls sideways, at any width."""

import html
import json
import re
import shutil
import subprocess

import pytest

from kaizen_dist.report.page import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser installed: {NAMES}")

# The page forbids scripts, so it is measured from outside, through a frame of the given width.
PROBE = """
const box = e => e.getBoundingClientRect(), frames = [...document.querySelectorAll("iframe")];
addEventListener("load", () => {
  const faults = [];
  for (const frame of frames) {
    const d = frame.contentDocument, width = frame.clientWidth;
    const say = text => faults.push(width + "px: " + text);
    if (d.documentElement.scrollWidth > width) say("scrolls sideways");
    for (const e of d.querySelectorAll(".chart text, .value, h1, dd, dt, figcaption, .legend li"))
      if (box(e).right > width + 1 || box(e).left < -1) say("outside: " + e.textContent);
    for (const e of d.querySelectorAll(".compare tbody th"))
      if (e.textContent.length < 12 && box(e).height > 48) say("squeezed: " + e.textContent);
    for (const e of d.querySelectorAll("td.cell, .rows th, .rows td"))
      if (e.scrollWidth > e.clientWidth) say("cut off: " + e.textContent);
    for (const chart of d.querySelectorAll(".chart svg"))
      [...chart.querySelectorAll("text")].forEach((a, i, all) => all.slice(i + 1).forEach(b => {
        const w = Math.min(box(a).right, box(b).right) - Math.max(box(a).left, box(b).left);
        const h = Math.min(box(a).bottom, box(b).bottom) - Math.max(box(a).top, box(b).top);
        if (w > 0.5 && h > 0.5) say("overlap: " + a.textContent + " / " + b.textContent);
      }));
    if (!d.querySelector("h1") || box(d.querySelector("h1")).height < 20) say("not laid out");
  }
  document.getElementById("faults").textContent = JSON.stringify(faults);
});
"""


def faults_of(page, tmp_path, widths=(360, 768, 1280)):
    document = html.escape(page)
    frames = "".join(
        f'<iframe style="width:{w}px;border:0" srcdoc="{document}"></iframe>' for w in widths
    )
    probe = tmp_path / "probe.html"
    probe.write_text(f"<!doctype html><p id=faults></p>{frames}<script>{PROBE}</script>")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000"]
    command = [BROWSER, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run([*command, probe.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'<p id="faults">(.*?)</p>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


def test_one_run_of_few_tasks_and_of_many(make_run, tmp_path):
    for name, tasks, rows in (("one", 1, 1), ("two", 2, 3), ("twenty", 20, 30)):
        folder = make_run(name, tasks=tasks, rows_per_task=rows)
        page = write_report([folder]).read_text()
        assert faults_of(page, tmp_path) == []


def test_several_runs_with_a_long_name(make_run, tmp_path):
    folders = [make_run("kaizen"), make_run("n" * 120, done=3), make_run("twenty", tasks=20)]
    page = write_report(folders, tmp_path / "all.html").read_text()
    assert faults_of(page, tmp_path) == []


def test_the_probe_finds_what_it_looks_for(make_run, tmp_path):
    page = write_report([make_run()]).read_text()
    wide = page.replace("<h1>", '<div style="width:2000px">x</div><h1>')
    assert "360px: scrolls sideways" in faults_of(wide, tmp_path)
    crowded = re.sub(r'<text x="[\d.]+"', '<text x="99"', page)
    crowded = re.sub(r' transform="rotate[^"]+"', "", crowded)
    assert any("overlap: " in fault for fault in faults_of(crowded, tmp_path))
