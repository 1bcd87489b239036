"""Takes the screenshots in the documentation: of a run's report, in headless Chromium.

    PYTHONPATH=. python docs/take_screenshots.py runs/pretrain_scenes

Writes docs/images/report.png (the top of the report) and docs/images/report_gallery.png (two of the
worst and two of the best examples of three tasks). It needs Chromium and the extra `[dev]`; the run
directory is only read.
"""

import argparse
import io
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from PIL import Image
from playwright import sync_api

from ofa_jax.reports import run_report

WIDTH, HEIGHT = 1360, 1500
TASKS = ("visual_grounding", "image_captioning", "image_infilling")
MAX_BYTES = 300_000
# Keeps the given galleries, and of each the first two and the last two cards.
_KEEP = """tasks => {
  for (const cards of document.querySelectorAll('.cards')) {
    const kept = tasks.includes(cards.dataset.task);
    cards.previousElementSibling.style.display = kept ? '' : 'none';
    const all = [...cards.children];
    all.forEach((card, place) => {
      const shown = kept && (place < 2 || place >= all.length - 2);
      card.style.display = shown ? '' : 'none';
    });
  }
  document.querySelector('#configuration').style.display = 'none';
  document.querySelectorAll('details').forEach(one => one.style.display = 'none');
}"""


def main(arguments: Sequence[str]) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir", type=pathlib.Path, metavar="RUN")
    parser.add_argument(
        "--output_dir", type=pathlib.Path, default=pathlib.Path(__file__).parent / "images"
    )
    options = parser.parse_args(arguments)
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        parser.error("there is no Chromium: install Debian's package chromium.")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_api.sync_playwright() as playwright:
        report = run_report.write_report([options.model_dir], pathlib.Path(folder) / "report.html")
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = opened.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(report.as_uri())
        page.wait_for_load_state()
        _save(page.screenshot(), options.output_dir / "report.png")
        if page.locator("#gallery").count():
            page.evaluate(_KEEP, list(TASKS))
            _save(_gallery(page), options.output_dir / "report_gallery.png")
        opened.close()


def _gallery(page: Any) -> bytes:
    """Returns a screenshot from the gallery's heading to the end of the page."""
    top = page.locator("#gallery").evaluate(
        "heading => heading.getBoundingClientRect().top + scrollY"
    )
    height = page.evaluate("document.body.getBoundingClientRect().bottom + scrollY") - top
    clip = {"x": 0, "y": top, "width": WIDTH, "height": height}
    return page.screenshot(full_page=True, clip=clip)


def _save(screenshot: bytes, path: pathlib.Path) -> None:
    """Saves a screenshot with 256 colors, smaller until it is a small file."""
    image = Image.open(io.BytesIO(screenshot)).convert("RGB")
    while True:
        image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= MAX_BYTES:
            break
        image = image.resize((round(image.width * 0.9), round(image.height * 0.9)))
    print(f"{path}: {image.width} x {image.height} pixels, {path.stat().st_size:,} bytes.")


if __name__ == "__main__":
    main(sys.argv[1:])
