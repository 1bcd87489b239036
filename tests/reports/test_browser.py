"""The pages in a real browser: no error, every image loads, boxes are where the JSON says."""

import pathlib

import numpy as np
import pytest
import seqio
from browser_fixtures import needs_browser
from report_files import PREDICTED, TRUE, write_run

from ofa_jax.reports import run_report
from ofa_jax.reports.mixture import TaskSample
from ofa_jax.reports.mixture_page import write_mixture_page

pytestmark = needs_browser


@pytest.fixture
def opened(browser):
    """Returns a function that opens a file and checks that the page is whole."""

    def open_page(path: pathlib.Path):
        page, problems = browser.new_page(viewport={"width": 1200, "height": 900}), []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(("file:", "data:")) else problems.append(request.url)
            ),
        )
        page.goto(path.as_uri())
        page.wait_for_load_state()
        assert problems == []
        loaded = page.evaluate(
            "Promise.all([...document.querySelectorAll('image, img')].map(async shown => {"
            "  const image = new Image(); image.src = shown.getAttribute('href') || shown.src;"
            "  await image.decode(); return image.naturalWidth; }))"
        )
        assert all(width > 0 for width in loaded)
        return page, len(loaded)

    return open_page


def test_the_report_opens_from_disk(tmp_path, opened):
    page, num_images = opened(run_report.write_report([write_run(tmp_path / "run")]))
    assert num_images == 2
    assert page.locator(".js-plotly-plot .main-svg").count() > 0
    corners = page.evaluate("JSON.parse(document.getElementById('galleries').textContent)")[0]
    assert corners["examples"][0]["target_boxes"][0]["corners"] == list(TRUE)
    # Where the boxes are on the screen, in pixels of the stored image of 100 x 80.
    frame = page.locator(".card svg").first.bounding_box()
    # The image is as wide as its card unless that made it too high.
    scale = min(frame["width"] / 100, frame["height"] / 80)
    left = frame["x"] + (frame["width"] - 100 * scale) / 2
    top = frame["y"] + (frame["height"] - 80 * scale) / 2
    for kind, box in (("true", TRUE), ("predicted", PREDICTED)):
        drawn = page.locator(f".card svg rect.{kind}").first.bounding_box()
        shown = [drawn["x"] - left, drawn["y"] - top]
        shown += [shown[0] + drawn["width"], shown[1] + drawn["height"]]
        # A bounding box includes half of the line of 2.5 pixels; positions are rounded to pixels.
        np.testing.assert_allclose(np.array(shown) / scale, box, atol=2.5 / scale)


def test_a_token_shows_its_id_on_hover(tmp_path, opened):
    tokens = np.array([5, 6, 7], np.int32)
    example = {"inputs": tokens, "targets": tokens[:1], "image": np.zeros((8, 8, 3), np.uint8)}
    sample = TaskSample("some_task", 1.0, 1, True, [example], (), seqio.PassThroughVocabulary(300))
    path = tmp_path / "mixture.html"
    write_mixture_page(path, "some mixture", [sample], {"some_task": {"inputs": 2, "targets": 4}})
    page, num_images = opened(path)
    assert num_images == 1
    titles = page.locator(".tokens span").evaluate_all("all => all.map(one => one.title)")
    assert titles == ["id 5", "id 6", "id 7", "id 5"]
    # One of one inputs is longer than 2; three quarters of four targets are padding.
    cells = page.locator("table").nth(1).locator("td.number").all_text_contents()
    assert cells == ["3 / 3 / 3", "2", "100.0 %", "0.0 %", "1 / 1 / 1", "4", "0.0 %", "75.0 %"]
