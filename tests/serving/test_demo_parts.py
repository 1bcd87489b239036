"""The images and examples of the demo page, and its command line, without a browser."""

import io
import json
import os
import signal
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from PIL import Image
from run_fixtures import config, processor, run_directory, variables  # noqa: F401

pytest.importorskip("fastapi", reason="FastAPI is not installed (the extra demo)")

from ofa_jax import demo  # noqa: E402
from ofa_jax.evaluation.gallery import data_uri  # noqa: E402
from ofa_jax.inference.image_generation import ImageGeneration  # noqa: E402
from ofa_jax.inference.predictions import Prediction  # noqa: E402
from ofa_jax.serving import demo_answers  # noqa: E402
from ofa_jax.serving.limits import Limits  # noqa: E402
from ofa_jax.serving.page_examples import find_examples  # noqa: E402
from ofa_jax.serving.uploads import UploadStore  # noqa: E402


def encode(colour, size=(64, 48)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def test_the_store_forgets_the_oldest_image_but_no_example():
    store = UploadStore(Limits(), max_bytes=1)
    pinned = store.add(encode("red"), pinned=True)
    first, second = store.add(encode("green")), store.add(encode("blue"))
    assert store.find(pinned.key) is pinned and store.find(second.key) is second
    with pytest.raises(ValueError, match="no longer on the server"):
        store.find(first.key)


def test_an_image_has_its_size_and_a_preview():
    upload = UploadStore(Limits()).add(encode("red", (3000, 60)))
    assert (upload.width, upload.height) == (3000, 60)
    assert upload.preview.startswith("data:image/webp;base64,")
    with pytest.raises(ValueError, match="pixels"):
        UploadStore(Limits(max_image_pixels=100)).add(encode("red"))


def shown(instruction, boxes=(), image=True):
    return {
        "image": data_uri(Image.new("RGB", (768, 384)), 384) if image else None,
        "width": 768,
        "height": 384,
        "index": 0,
        "id": "record",
        "instruction": instruction,
        "prediction": "a dog",
        "score": -1.0,
        "quality": None,
        "target": "a cat",
        "given_boxes": [{"corners": list(box), "label": ""} for box in boxes],
    }


def test_examples_are_those_of_the_galleries(tmp_path):
    folder = tmp_path / "run" / "galleries" / "validation" / "40"
    folder.mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "40").mkdir(parents=True)
    region = " what does the region describe? region: <bin_1> <bin_2><bin_30> <bin_40>"
    galleries = {
        "grounded_captioning": [shown(region, [(100, 50, 200, 800)])],
        "image_captioning": [shown(f"number {number}") for number in range(9)],
        "text_infilling": [
            shown("text <mask>", image=False),
            shown("") | {"image": "https://elsewhere"},
        ],
        "my_task": [shown("mine")],
    }
    for task, examples in galleries.items():
        (folder / f"{task}.json").write_text(json.dumps(examples))
    found = find_examples(str(tmp_path / "run" / "checkpoints" / "40"))
    assert [example.instruction for example in found if example.task == "image_captioning"] == [
        "number 0",
        "number 4",
        "number 8",
    ]
    grounded = next(example for example in found if example.task == "grounded_captioning")
    assert grounded.instruction == "what does the region describe? region: {region}"
    assert grounded.region == (50.0, 25.0, 100.0, 192.0)
    assert grounded.target == "a cat"
    assert [example.image for example in found if example.task == "text_infilling"] == [None]
    assert [example.task for example in found if example.title == "my task"] == [""]
    assert find_examples(str(tmp_path / "run"))[0] == found[0]
    assert find_examples(str(tmp_path / "nothing")) == find_examples("model.pt") == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "required: CHECKPOINT"),
        (["nowhere", "--port=70000"], "--port is 70000; give a number from 0 to 65535."),
        (["nowhere", "--batch_size=0"], "batch_size"),
        (["nowhere", "--share"], "--share"),
        (["nowhere", "--image_candidates=0"], "image_candidates"),
        (["nowhere", "--image_top_p=2"], "image_top_p"),
        (["nowhere", "--guidance_scale=-1"], "guidance_scale"),
        (["nowhere", "--image_reranker=nowhere.pt"], "nowhere.pt"),
    ],
)
def test_a_mistake_in_the_arguments_is_one_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        demo.main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and sentence in error


def test_the_flags_say_how_images_are_generated():
    flags = ["--image_candidates=8", "--guidance_scale=3", "--image_top_k=64", "--image_top_p=0.9"]
    chosen = demo._parse(["run", *flags, "--image_temperature=0.8", "--image_reranker=matching"])
    assert demo._image_generation(chosen) == ImageGeneration(8, 0.8, 64, 0.9, 3.0, "matching")
    assert demo._image_generation(demo._parse(["run"])) == ImageGeneration(num_candidates=4)


def test_all_candidates_of_an_image_are_shown_with_their_scores():
    def make(colour, score, *others):
        boxes, codes = np.zeros((0, 4), np.float32), np.zeros(4, np.int32)
        image = Image.new("RGB", (16, 16), colour)
        return Prediction("", boxes, (), codes, image, score, "<code_0>", others)

    page = demo_answers.answer(
        make("red", -0.25, make("green", -0.5), make("blue", -1.0)), None, None, None, (0, 0)
    )
    for name in ("the best candidate, score -0.250", "candidate 3, score -1.000"):
        assert f"<figcaption>{name}</figcaption>" in page
    assert page.count("<img") == 3
    assert "generated image" in demo_answers.answer(make("red", -1.0), None, None, None, (0, 0))


def test_missing_gradio_is_one_sentence():
    program = (
        "import sys; sys.modules['gradio'] = None;from ofa_jax import demo; demo.main(['nowhere'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    # TensorFlow announces itself in lines of its own, depending on the environment.
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "pip install 'ofa_jax[demo]'" in line and "Traceback" not in done.stderr


@pytest.mark.slow  # loads everything once more
@pytest.mark.parametrize("compiled", [False, True])
def test_the_command_serves_until_it_is_told_to_stop(run_directory, tmp_path, compiled):  # noqa: F811
    """Also while it compiles the program of captions, in a thread that nobody can stop."""
    pytest.importorskip("gradio", reason="Gradio is not installed (the extra demo)")
    command = [sys.executable, "-m", "ofa_jax.demo", str(run_directory), "--port=0"]
    cache = {} if compiled else {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | cache
    ) as process:
        line = process.stdout.readline()
        assert line.startswith("Serving at http://127.0.0.1:")
        with urllib.request.urlopen(line.split()[-1], timeout=30) as response:
            assert b"ofaDemo" in response.read()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
