"""The demo in the browser: an image, a box on it and a question; the answer of the model.

    app = make_app(queue)
    add_demo_page(app, queue, examples)
    serve(app, queue, port=7860)

    image ─▶ POST /demo/image ─▶ UploadStore ─┐
    task, instruction, box ─▶ Gradio ─────────┴▶ PredictionQueue ─▶ HTML

The page is Gradio's, at `/`; the image and the box on it are a piece of JavaScript of our own
(`templates/demo.js`). Nothing is loaded from another server, and Gradio's telemetry is off.
"""

import asyncio
import atexit
import concurrent.futures
import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging
from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from ofa_jax.inference import presets
from ofa_jax.inference.image_generation import with_images
from ofa_jax.inference.loading import LoadedModel
from ofa_jax.model.config import PIXELS_PER_CODE
from ofa_jax.preprocessing import instructions
from ofa_jax.serving import demo_answers, fields, schemas
from ofa_jax.serving.http_guards import BodyReader, HttpError, discard_body, json_response
from ofa_jax.serving.page_examples import PageExample
from ofa_jax.serving.page_guard import PageGuard
from ofa_jax.serving.prediction_queue import PredictionQueue
from ofa_jax.serving.prediction_requests import PredictionRequest, RefusedError
from ofa_jax.serving.uploads import Upload, UploadStore
from ofa_jax.utils.decode_options import AS_SEEN

__all__ = ["PageContent", "add_demo_page", "page_content"]

_IMAGE_PATH = "/demo/image"
_OWN_PATHS = frozenset({"/predict", "/health", "/docs", "/openapi.json", _IMAGE_PATH})
_TEMPLATES = Path(__file__).parent / "templates"
_ANY_TASK = ""
_MAX_CONCURRENT = 64
_CANDIDATES = {"image_text_matching": "yes\nno", "snli_ve": "yes\nno\nmaybe"}
_ABOUT_REGIONS = (None, "grounded_captioning", "visual_question_answering")
_UNUSED_REGION = "The box was not used: this instruction is about the whole image."
_FIRST_INSTRUCTION = schemas.EXAMPLE_INSTRUCTIONS["image_captioning"]


@dataclasses.dataclass(frozen=True)
class PageContent:
    """What the page says about its model.

    Attributes:
      title: of the model.
      tasks: that the model can answer, keys of `presets.PRESETS`.
      infill: pixels a side of the image that infilling reads, and of its hidden middle.
      examples: questions to begin with.
      why_no_examples: a sentence for a page without examples.
    """

    title: str
    tasks: Sequence[str]
    infill: tuple[int, int] = (0, 0)
    examples: Sequence[PageExample] = ()
    why_no_examples: str = "There are no examples: this checkpoint is not in a run with a gallery."


def page_content(
    title: str, loaded: LoadedModel, examples: Sequence[PageExample], **others: Any
) -> PageContent:
    """Returns the content of a model's page; tasks that it cannot answer are left out."""
    tasks = []
    for task in presets.PRESETS:
        try:
            preset = presets.find_preset(task, loaded.processor, loaded.model.config)
            preset.decoding.check(loaded.model.config)
            tasks.append(task)
        except ValueError as error:
            logging.info("The page leaves out %s: %s", task, error)
    hidden = loaded.model.config.code_grid * PIXELS_PER_CODE
    infill = loaded.processor.infill_image_size, hidden
    known = [example for example in examples if not example.task or example.task in tasks]
    return PageContent(title, tasks, infill, known, **others)


def add_demo_page(app: FastAPI, queue: PredictionQueue, content: PageContent) -> None:
    """Puts the page at `/` of an application.

    Args:
      app: of `http_app.make_app`; its own paths stay.
      queue: answers the questions.
      content: what the page says about its model.

    Raises:
      ModuleNotFoundError: Gradio is not installed.
    """
    gradio = _import_gradio()
    predictor: Any = queue.predictor
    loaded = getattr(predictor, "loaded", None)
    decode_options = AS_SEEN if loaded is None else loaded.processor.decode_options
    store = UploadStore(queue.limits, decode_options)
    page = _Page(queue, store, content)
    app.add_api_route(_IMAGE_PATH, page.take_image, methods=["POST"], include_in_schema=False)
    blocks = page.build(gradio)
    app.add_middleware(PageGuard, own_paths=_OWN_PATHS)
    gradio.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=queue.limits.max_image_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        allowed_paths=[],
        theme=gradio.themes.Default(
            font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        css=(_TEMPLATES / "demo.css").read_text("utf-8"),
        head=page.script(),
    )


def _import_gradio() -> Any:
    """Imports Gradio with everything off that would leave this machine or write outside."""
    folder = tempfile.TemporaryDirectory(prefix="ofa_demo_")
    atexit.register(folder.cleanup)
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_TEMP_DIR": folder.name,
        "GRADIO_SHARE": "False",
        "GRADIO_SSR_MODE": "False",
        "GRADIO_MCP_SERVER": "False",
        "GRADIO_RUN_HISTORY": "False",
        "GRADIO_ALLOWED_PATHS": "",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    import gradio

    return gradio


class _Page:
    """The parts of the page, and what happens on a click."""

    def __init__(self, queue: PredictionQueue, store: UploadStore, content: PageContent):
        self._queue, self._store, self._content = queue, store, content
        self._bodies = BodyReader(queue.limits)
        # Each takes the memory of one decoded image.
        self._threads = concurrent.futures.ThreadPoolExecutor(2, "demo")
        self._examples: list[tuple[PageExample, Upload | None]] = []
        for example in content.examples:
            try:
                upload = store.add(example.image, pinned=True) if example.image else None
            except ValueError as error:
                logging.warning("An example of %s is left out: %s", example.title, error)
                continue
            self._examples.append((example, upload))

    # ------------------------------------------------------------------------------------ layout

    def build(self, gradio: Any) -> Any:
        """Returns Gradio's blocks."""
        with gradio.Blocks(title="OFA demo", analytics_enabled=False) as blocks:
            gradio.HTML(demo_answers.render("demo_head.html", title=self._content.title))
            with gradio.Row():
                with gradio.Column(scale=1, min_width=340):
                    gradio.HTML(demo_answers.render("demo_viewer.html"))
                with gradio.Column(scale=1, min_width=340):
                    task = gradio.Dropdown(
                        self._task_choices(), value=_ANY_TASK, label="Task", elem_id="ofa-task"
                    )
                    instruction = gradio.Textbox(
                        _FIRST_INSTRUCTION,
                        label="Instruction",
                        lines=2,
                        elem_id="ofa-instruction",
                        info="{region} is where the box goes; without it the box is appended.",
                    )
                    candidates = gradio.Textbox(
                        "",
                        label="Allowed answers, one on each line (empty: any answer)",
                        lines=2,
                        elem_id="ofa-candidates-allowed",
                    )
                    score_all = gradio.Checkbox(
                        False, label="Score every allowed answer", elem_id="ofa-score-all"
                    )
                    ask = gradio.Button("Ask", variant="primary", elem_id="ofa-ask")
                    shown = gradio.HTML("", elem_id="ofa-answer")
            gradio.HTML(self._examples_html())
            question = gradio.Textbox("", visible=False)
            chosen = gradio.Textbox("", visible=False)
            load = gradio.Button("Load", visible="hidden", elem_id="ofa-load")
            private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
            task.input(self._on_task, [task], [instruction, candidates, score_all], **private)
            load.click(
                self._on_example,
                [chosen],
                [task, instruction, candidates, score_all, shown],
                js="() => window.ofaDemo.example()",
                **private,
            )
            asking: dict[str, Any] = {
                "fn": self.ask,
                "inputs": [question, task, instruction, candidates, score_all],
                "outputs": [shown],
                "js": "(question, ...others) => [window.ofaDemo.question(), ...others]",
                "api_visibility": "private",
                "concurrency_limit": _MAX_CONCURRENT,
            }
            ask.click(**asking)
            instruction.submit(**asking)
        blocks.queue(max_size=self._queue.max_waiting, default_concurrency_limit=_MAX_CONCURRENT)
        return blocks

    def script(self) -> str:
        """Returns the page's own JavaScript."""
        examples = [
            {"image": None if upload is None else _as_json(upload), "region": example.region}
            for example, upload in self._examples
        ]
        limits = {"bytes": self._queue.limits.max_image_bytes}
        text = (_TEMPLATES / "demo.js").read_text("utf-8")
        for name, value in (("__LIMITS__", limits), ("__EXAMPLES__", examples)):
            # A string in a string: nothing in it can end the script.
            inner = json.dumps(json.dumps(value)).replace("<", "\\u003c")
            text = text.replace(f'"{name}"', inner)
        return f"<script>{text}</script>"

    def _task_choices(self) -> list[tuple[str, str]]:
        """Returns the tasks of the model as (label, value)."""
        named = [(task.replace("_", " "), task) for task in self._content.tasks]
        return [("that of the instruction", _ANY_TASK), *named]

    def _examples_html(self) -> str:
        """Returns the examples as buttons."""
        shown = [
            {
                "number": number,
                "title": example.title,
                "instruction": example.instruction,
                "target": example.target,
                "preview": None if upload is None else upload.preview,
            }
            for number, (example, upload) in enumerate(self._examples)
        ]
        return demo_answers.render(
            "demo_examples.html", examples=shown, why_none=self._content.why_no_examples
        )

    # ------------------------------------------------------------------------------------ events

    def _on_task(self, task: str) -> tuple[str, str, bool]:
        """Returns an instruction and the allowed answers of a task."""
        allowed = _CANDIDATES.get(task, "")
        return schemas.EXAMPLE_INSTRUCTIONS.get(task, ""), allowed, bool(allowed)

    def _on_example(self, chosen: str) -> tuple[str, str, str, bool, str]:
        """Returns what the form shows for an example."""
        if not chosen.isdecimal() or int(chosen) >= len(self._examples):
            return _ANY_TASK, "", "", False, ""
        example, _ = self._examples[int(chosen)]
        allowed = _CANDIDATES.get(example.task, "")
        return example.task, example.instruction, allowed, bool(allowed), ""

    async def ask(
        self, question: str, task: str, instruction: str, candidates: str, score_all: bool
    ) -> str:
        """Returns the answer as HTML, or a sentence on what is wrong with the question."""
        future = None
        try:
            upload, region = self._parse_question(question)
            task_name = task or instructions.recognise_task(instruction or "")
            unused = region is not None and not _is_about_region(instruction or "", task_name)
            region = None if unused else region
            request = _make_request(upload, region, task, instruction, candidates, score_all)
            loop = asyncio.get_running_loop()
            future = await loop.run_in_executor(self._threads, self._queue.submit, request)
            prediction = await asyncio.wrap_future(future)
            loaded = getattr(self._queue.predictor, "loaded", None)
            if prediction.image is not None and prediction.alternatives and loaded is not None:
                (prediction,) = await loop.run_in_executor(
                    self._threads, with_images, [prediction], loaded.processor
                )
            if unused:
                warnings = (*prediction.warnings, _UNUSED_REGION)
                prediction = dataclasses.replace(prediction, warnings=warnings)
            return await loop.run_in_executor(
                self._threads,
                demo_answers.answer,
                prediction,
                task_name,
                upload,
                region,
                self._content.infill,
            )
        except (ValueError, RefusedError) as error:
            return demo_answers.problem(fields.sentence(error))
        except asyncio.CancelledError:
            if future is not None:
                future.cancel()
            raise
        except Exception as error:  # noqa: BLE001  the page shows a sentence, the log the rest
            logging.error("A question of the page failed.", exc_info=error)
            return demo_answers.problem(
                f"The server failed on this question ({type(error).__name__}); its log says more."
            )

    def _parse_question(self, question: str) -> tuple[Upload | None, list[float] | None]:
        """Returns the image and the region of a question. Raises ValueError."""
        try:
            parsed = json.loads(question or "{}")
            key, region = parsed.get("key"), parsed.get("region")
        except (ValueError, AttributeError, RecursionError):
            raise ValueError("The page sent no question: load it again.") from None
        upload = self._store.find(key) if isinstance(key, str) else None
        if region is None:
            return upload, None
        numbers = region if isinstance(region, list) else []
        if len(numbers) != 4 or not all(
            isinstance(x, int | float) and math.isfinite(x) for x in numbers
        ):
            raise ValueError("The region lacks a corner: give all four numbers, or none.")
        return upload, [float(x) for x in numbers]

    async def take_image(self, request: Request) -> Response:
        """Answers an image with its key, size and preview, or with a sentence."""
        try:
            async with self._bodies.read(request) as body:
                upload = await asyncio.get_running_loop().run_in_executor(
                    self._threads, self._store.add, body
                )
            return json_response(_as_json(upload))
        except HttpError as error:
            await discard_body(request)
            return error.response()
        except ClientDisconnect:
            return Response(status_code=499)
        except ValueError as error:
            # 200, as the page shows the sentence: browsers log other statuses as errors.
            return json_response({"error": fields.sentence(error)})


def _as_json(upload: Upload) -> dict[str, Any]:
    """Returns what the page needs of an image."""
    return {
        "key": upload.key,
        "preview": upload.preview,
        "width": upload.width,
        "height": upload.height,
    }


def _is_about_region(instruction: str, task: str | None) -> bool:
    """Returns whether a box belongs into an instruction; other tasks never saw one in training."""
    return instructions.REGION in instruction or task in _ABOUT_REGIONS


def _make_request(
    upload: Upload | None,
    region: list[float] | None,
    task: str,
    instruction: str,
    candidates: str,
    score_all: bool,
) -> PredictionRequest:
    """Returns the request of a question. Raises ValueError if something is missing."""
    if not (instruction or "").strip():
        raise ValueError("The instruction is empty: write what the model should do.")
    if region is None and (instructions.REGION in instruction or task == "grounded_captioning"):
        raise ValueError(
            "The question is about a region, but there is none: drag a box on the image, or type "
            "its corners."
        )
    allowed = [line.strip() for line in (candidates or "").splitlines() if line.strip()]
    return PredictionRequest(
        instruction,
        None if upload is None else upload.encoded,
        region,
        task or None,
        allowed or None,
        bool(score_all and allowed),
    )
