"""The demo page in a real browser, and what its server refuses."""

import contextlib
import dataclasses
import io
import json
import socket
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from browser_fixtures import needs_browser
from PIL import Image
from run_fixtures import config, processor, run_directory, variables  # noqa: F401

pytest.importorskip("gradio", reason="Gradio is not installed (the extra demo)")

import uvicorn  # noqa: E402

from ofa_jax.inference.image_generation import ImageGeneration  # noqa: E402
from ofa_jax.inference.predictions import Prediction  # noqa: E402
from ofa_jax.inference.predictor import Predictor  # noqa: E402
from ofa_jax.serving.demo_page import PageContent, add_demo_page, page_content  # noqa: E402
from ofa_jax.serving.http_app import make_app  # noqa: E402
from ofa_jax.serving.limits import Limits  # noqa: E402
from ofa_jax.serving.page_examples import PageExample  # noqa: E402
from ofa_jax.serving.prediction_queue import PredictionQueue  # noqa: E402

WIDTH, HEIGHT = 200, 150
EXAMPLE = 'which region does the text "a red apple" describe?'


def encode(width=WIDTH, height=HEIGHT, kind="PNG", **options):
    """Returns an image file of noise in large squares."""
    pixels = np.random.default_rng(1).integers(0, 256, (height // 10, width // 10, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.repeat(10, axis=0).repeat(10, axis=1)).save(file, kind, **options)
    return file.getvalue()


@dataclasses.dataclass(frozen=True)
class Asked:
    """A prepared request."""

    text: str
    size: tuple[int, int]
    options: dict
    group: int = 0


class BoxPredictor:
    """Answers with a box whose left side is the number of letters of the instruction."""

    batch_size = 4

    def __init__(self):
        self.asked = []

    def prepare(self, image, instruction, **options):
        if instruction == "fail":
            raise ValueError("The instruction <b>fails</b>.")
        return Asked(instruction, None if image is None else image.size, options)

    def decode(self, batch):
        self.asked += batch
        return [
            Prediction(
                "",
                np.array([[len(one.text), 10, 120, 90]], np.float32),
                (),
                None,
                None,
                -0.5,
                "<bin_1>",
            )
            for one in batch
        ]


@contextlib.contextmanager
def serving(predictor, content, limits=None):
    """Serves a page in a thread; yields its address."""
    queue = PredictionQueue(predictor, limits=limits)
    app = make_app(queue)
    add_demo_page(app, queue, content)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = server.force_exit = True
            thread.join(30)
            queue.drain(timeout=5)


@pytest.fixture(scope="module")
def predictor():
    return BoxPredictor()


@pytest.fixture(scope="module")
def address(predictor):
    examples = [
        PageExample("visual grounding", "visual_grounding", EXAMPLE, encode(), target="1, 2, 3, 4"),
        PageExample(
            "grounded captioning",
            "grounded_captioning",
            "what does the region describe? region: {region}",
            encode(100, 80),
            (10.0, 20.0, 30.0, 40.0),
        ),
    ]
    content = PageContent("a <stub>", ["image_captioning", "visual_grounding"], examples=examples)
    limits = Limits(max_image_bytes=400_000, max_image_pixels=90_000)
    with serving(predictor, content, limits) as address:
        yield address


@pytest.fixture
def open_page(browser):
    """Returns a function that opens a page; fails on its errors and on requests elsewhere."""
    opened = []

    def open_address(address):
        page, problems = browser.new_page(viewport={"width": 1280, "height": 1000}), []
        page.on(
            "console",
            lambda message: (
                problems.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((f"{address}/", "data:", "blob:"))
                else problems.append(request.url)
            ),
        )
        page.goto(address)
        page.wait_for_selector("#ofa-file", state="attached")
        page.wait_for_selector("#ofa-ask")
        opened.append((page, problems))
        return page

    yield open_address
    for page, problems in opened:
        page.wait_for_timeout(100)
        assert problems == []
        page.close()


def upload(page, content, name="image.png"):
    page.set_input_files("#ofa-file", {"name": name, "mimeType": "image/png", "buffer": content})


def upload_image(page, content=None):
    upload(page, encode() if content is None else content)
    page.wait_for_selector("#ofa-stage:visible")


def status_of(page):
    page.wait_for_function(
        "['', 'Reading the image …'].indexOf("
        "document.getElementById('ofa-image-status').textContent) < 0"
    )
    return page.inner_text("#ofa-image-status")


def ask(page, instruction):
    """Asks, and returns the boxes of the answer."""
    page.evaluate(
        "document.querySelectorAll('.ofa-text, #ofa-answer [role=alert]').forEach(x => x.remove())"
    )
    page.fill("#ofa-instruction textarea", instruction)
    page.click("#ofa-ask")
    page.wait_for_selector("#ofa-answer .ofa-text, #ofa-answer [role=alert]", timeout=120_000)
    boxes = page.locator("#ofa-answer rect.predicted").evaluate_all(
        "all => all.map(one => one.dataset.box)"
    )
    return [[float(corner) for corner in box.split(",")] for box in boxes]


@needs_browser
def test_the_box_moves_when_the_question_changes(address, open_page):
    page = open_page(address)
    upload_image(page)
    assert page.inner_text("#ofa-size") == f"{WIDTH} × {HEIGHT} pixels"
    assert ask(page, "where is it?") == [[12.0, 10.0, 120.0, 90.0]]
    before = page.locator("#ofa-answer rect.predicted").bounding_box()
    assert ask(page, "where is the large one?") == [[23.0, 10.0, 120.0, 90.0]]
    after = page.locator("#ofa-answer rect.predicted").bounding_box()
    assert after["x"] > before["x"]
    assert "-0.500" in page.inner_text("#ofa-answer .ofa-candidates")


@needs_browser
def test_mistakes_are_answered_by_sentences(address, open_page):
    page = open_page(address)
    upload(page, b"this is a text", "text.png")
    assert "it is not a JPEG, PNG" in status_of(page)
    for content, expected in (
        (encode(400, 300), "has 400 x 300 pixels; the limit is 90,000"),
        (bytes(500_000), "has 500,000 bytes; the limit is 400,000"),
    ):
        page.evaluate("document.getElementById('ofa-image-status').textContent = ''")
        upload(page, content)
        assert expected in status_of(page)
    for instruction, expected in (
        ("", "The instruction is empty"),
        ("what is in {region}?", "there is none: drag a box"),
        ("fail", "The instruction <b>fails</b>."),
    ):
        assert ask(page, instruction) == []
        assert expected in page.inner_text("#ofa-answer [role=alert]")


@needs_browser
def test_a_box_is_dragged_or_typed_in_pixels_of_the_image(address, predictor, open_page):
    page = open_page(address)
    upload_image(page)
    frame = page.locator("#ofa-preview").bounding_box()
    place = lambda x, y: (frame["x"] + x * frame["width"], frame["y"] + y * frame["height"])  # noqa: E731
    page.mouse.move(*place(0.75, 0.8))
    page.mouse.down()
    page.mouse.move(*place(0.5, 0.5))
    page.mouse.move(*place(0.25, 0.2))
    page.mouse.up()
    corners = [page.input_value(f"#ofa-{name}") for name in ("x0", "y0", "x1", "y1")]
    np.testing.assert_allclose(list(map(float, corners)), [50, 30, 150, 120], atol=1)
    page.fill("#ofa-x0", "40.5")
    drawn = page.locator("#ofa-box").bounding_box()
    shown = [
        (drawn["x"] - frame["x"]) / frame["width"] * WIDTH,
        drawn["width"] / frame["width"] * WIDTH,
    ]
    np.testing.assert_allclose(shown, [40.5, 109.5], atol=3)
    ask(page, "what is in {region}?")
    np.testing.assert_allclose(predictor.asked[-1].options["region"], [40.5, 30, 150, 120], atol=1)
    assert page.locator("#ofa-answer rect.given").count() == 1
    ask(page, "what does the image describe?")
    assert predictor.asked[-1].options["region"] is None
    assert "The box was not used" in page.inner_text("#ofa-answer")
    page.fill("#ofa-x0", "")
    ask(page, "what is in {region}?")
    assert "lacks a corner" in page.inner_text("#ofa-answer [role=alert]")
    page.click("#ofa-clear")
    assert page.input_value("#ofa-y0") == ""
    assert not page.locator("#ofa-box").is_visible()


@needs_browser
def test_an_image_is_pasted_and_turned_as_its_exif_data_says(address, predictor, open_page):
    exif = Image.Exif()
    exif[274] = 6  # by 90 degrees
    page = open_page(address)
    page.evaluate(
        "bytes => { const data = new DataTransfer();"
        "data.items.add(new File([new Uint8Array(bytes)], 'a.jpg', {type: 'image/jpeg'}));"
        "document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data})); }",
        list(encode(kind="JPEG", exif=exif)),
    )
    page.wait_for_selector("#ofa-stage:visible")
    assert page.inner_text("#ofa-size") == f"{HEIGHT} × {WIDTH} pixels"
    frame = page.locator("#ofa-preview").bounding_box()
    assert frame["height"] / frame["width"] == pytest.approx(WIDTH / HEIGHT, rel=0.02)
    ask(page, "where?")
    assert predictor.asked[-1].size == (HEIGHT, WIDTH)
    assert page.locator("#ofa-answer svg").get_attribute("viewBox") == f"0 0 {HEIGHT} {WIDTH}"


@needs_browser
def test_an_example_fills_the_form(address, predictor, open_page):
    page = open_page(address)
    page.click("[data-example='0']")
    page.wait_for_function(
        "text => document.querySelector('#ofa-instruction textarea').value === text", arg=EXAMPLE
    )
    assert "visual grounding" in page.input_value("#ofa-task input")
    page.click("#ofa-ask")
    page.wait_for_selector("#ofa-answer rect.predicted")
    assert predictor.asked[-1].options["task"] == "visual_grounding"
    page.click("[data-example='1']")
    page.wait_for_selector("#ofa-box", state="visible")
    page.wait_for_function(
        "document.querySelector('#ofa-instruction textarea').value.includes('{region}')"
    )
    assert [page.input_value(f"#ofa-{name}") for name in ("x0", "y1")] == ["10", "40"]


@needs_browser
def test_a_task_brings_its_instruction(address, open_page):
    page = open_page(address)
    page.click("#ofa-task input")
    page.get_by_role("option", name="visual grounding").click()
    page.wait_for_function(
        "document.querySelector('#ofa-instruction textarea').value.startsWith('which region')"
    )


@needs_browser
def test_the_small_model_answers_through_the_whole_path(run_directory, open_page):  # noqa: F811
    predictor = Predictor(
        run_directory,
        batch_size=2,
        beam_size=2,
        source_lengths=(32,),
        image_generation=ImageGeneration(num_candidates=3, guidance_scale=2.0),
    )
    content = page_content("small", predictor.loaded, [])
    assert "visual_grounding" in content.tasks
    with serving(predictor, content) as address:
        page = open_page(address)
        upload_image(page)
        text = 'which region does the text "a red apple" describe?'
        found = predictor.predict(encode(), text)
        # A model of random parameters may give a box without area, which is not drawn.
        drawn = [box for box in found.boxes if box[2] > box[0] and box[3] > box[1]]
        np.testing.assert_allclose(
            np.reshape(ask(page, text), (-1, 4)), np.reshape(drawn, (-1, 4)), atol=0.06
        )
        assert found.text in page.inner_text("#ofa-answer")
        assert page.locator(".ofa-candidates tbody tr").count() == 2
        assert ask(page, "what is the image in the middle part?") == []
        assert page.locator("#ofa-answer .ofa-images img").count() == 3
        assert ask(page, "what is the complete image? caption: a red apple") == []
        names = page.locator("#ofa-answer .ofa-images figcaption").all_inner_texts()
        assert [name.split(",")[0] for name in names] == [
            "the best candidate",
            "candidate 2",
            "candidate 3",
        ]


def fetch(address, path, data=None, headers=None):
    """Returns the status and the body of a request."""
    request = urllib.request.Request(f"{address}{path}", data, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/file=/etc/passwd",
        "/gradio_api/upload",
        "/gradio_api/proxy=http://127.0.0.1/",
        "/gradio_api/run/ask",
        "/gradio_api/call/ask",
        "/gradio_api/component_server",
        "/gradio_api/vibe-code",
        "/gradio_api/runs",
        "/static/../config",
        "/assets/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/monitoring",
    ],
)
def test_nothing_else_of_gradio_is_served(address, path):
    status, body = fetch(address, path)
    assert status == 404
    assert "error" in json.loads(body) or "detail" in json.loads(body)


def test_the_endpoint_and_its_page_stay(address):
    assert fetch(address, "/health")[0] == 200
    assert fetch(address, "/docs")[0] == 200
    body = json.dumps({"instruction": "where is it?"}).encode()
    status, found = fetch(address, "/predict", body, {"Content-Type": "application/json"})
    assert status == 200 and json.loads(found)["boxes"] == [[12.0, 10.0, 120.0, 90.0]]


def test_a_page_of_another_site_may_not_send_images(address):
    status, body = fetch(address, "/demo/image", encode(), {"Origin": "http://elsewhere.example"})
    assert status == 403 and "elsewhere.example" in json.loads(body)["error"]


def test_too_long_a_question_is_cut_off(address):
    body = json.dumps({"data": ["x" * 400_000], "fn_index": 0, "session_hash": "a"}).encode()
    headers = {"Content-Type": "application/json"}
    status, _ = fetch(address, "/gradio_api/queue/join", body, headers)
    assert status >= 400
    assert fetch(address, "/health")[0] == 200
