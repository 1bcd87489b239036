"""Good inputs that several targets mutate: lines of TSV files, requests, a processor, a model."""

import base64
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from hostile_images import encode, noise

SENTENCES = (
    "which region does the text describe? what color is the car in the region? region:",
    "what does the image describe? a red apple and a green apple, yes no is there a dog",
)
FORMATS = (
    "vision_language", "text", "images", "detection", "caption", "vqa", "refcoco", "snli_ve",
    "imagenet", "text_to_image", "gigaword", "sst2", "mrpc",
)  # fmt: skip


@functools.cache
def image(number: int = 0) -> bytes:
    """Returns a small image."""
    return encode(noise(24 + number, 20), "PNG" if number % 2 else "JPEG")


def base64_image(number: int = 0) -> str:
    """Returns a small image in one of the two alphabets."""
    coder = base64.urlsafe_b64encode if number % 2 else base64.b64encode
    return coder(image(number)).decode()


def tsv_rows(kind: str) -> list[str]:
    """Returns twelve good lines of a kind of official file, without line ends."""
    codes = " ".join(map(str, range(4)))
    rows = []
    for n in range(12):
        pixels, box = base64_image(n), f"{n}.5,1,{n + 10}.25,15"
        pairs = {
            "caption": (f"a red apple {n}", "", "", "apple&&dog", "cc12m", "caption"),
            "qa": ("", f"is it {n}?", "0.6|!+yes&&1.0|!+no", "apple", "vqa", "qa"),
            "visual_grounding": (f"the apple {n}", "", box, "", "refcoco", "visual_grounding"),
        }
        columns: tuple[Any, ...] = {
            "vision_language": (n, pixels, *list(pairs.values())[n % 3]),
            "text": (n, f"there are {n} red apples and a green car."),
            "images": (n, pixels, codes),
            "detection": (n, pixels, f"{box},7,red apple&&0,0,9,9,8,dog"),
            "caption": (n, n, f"a red apple&&an apple {n}", "", pixels),
            "vqa": (n, n, f"is it {n}?", "1.0|!+yes&&0.3|!+no", "apple&&dog", pixels),
            "refcoco": (n, n, f"the apple {n}", box, pixels),
            "snli_ve": (n, n, pixels, f"it is {n}", "an apple", "entailment"),
            "imagenet": (pixels, n, "red apple"),
            "text_to_image": (n, codes, f"a red apple {n}"),
            "gigaword": (f"there are {n} red apples .", f"{n} apples"),
            "sst2": (f"it is {n} times good", n % 2),
            "mrpc": (f"it is {n}", f"there are {n}", n % 2),
        }[kind]
        rows.append("\t".join(map(str, columns)))
    return rows


def requests() -> list[dict[str, Any]]:
    """Returns twelve good requests of all kinds; images are files or base64."""
    instructions = (
        "what does the image describe?",
        'which region does the text "a red apple" describe?',
        "what color is the car in the region? region: {region}",
        "is there a dog?",
        "what is the image in the middle part?",
    )
    found = []
    for n in range(12):
        line: dict[str, Any] = {"id": f"r{n}", "instruction": instructions[n % 5]}
        line["image"] = base64_image(n) if n % 3 else "plain.png"
        if n % 5 == 2:
            line["region"] = [1, 2, 15.5, 18]
        found.append(line)
    return found


@functools.cache
def processor() -> Any:
    """Returns a small vocabulary with codes and image sizes."""
    import tempfile

    from ofa_jax.tokenizers import PatchCodebook
    from ofa_jax.tokenizers.processor import Processor
    from ofa_jax.tokenizers.vocabulary import OFAVocabulary
    from tools.train_tokenizer import train_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "tokenizer.json"
        train_tokenizer(SENTENCES, 330, path)
        vocabulary = OFAVocabulary.from_tokenizer_json(path, num_codes=16, num_bins=65)
    codebook = np.random.default_rng(0).permutation(256)[:16, None] * np.ones((1, 192))
    sizes = {"image_size": 48, "detection_image_size": 48, "infill_image_size": 48}
    return Processor(
        vocabulary, PatchCodebook(codebook.astype(np.float32)), max_image_size=64, **sizes
    )


def model_config() -> Any:
    """Returns the configuration of a small model with the processor's vocabulary."""
    from small_model import SMALL

    size = processor().vocabulary.vocab_size
    return SMALL.replace(vocab_size=size, max_source_positions=64)


def objectives() -> Mapping[str, Any]:
    """Returns kind of record -> functions from (record, rng) to an example, with small images."""
    from ofa_jax.preprocessing.negatives import NegativePool
    from ofa_jax.preprocessing.objective_config import ObjectiveConfig
    from ofa_jax.preprocessing.objectives import OBJECTIVES, RECORD_KIND

    pool = NegativePool(
        captions=("a cat on a mat", "two birds"),
        object_names=("cat", "dog", "bus"),
        answers_by_type={"other": ("blue", "red"), "yes/no": ("yes", "no")},
    )
    config = ObjectiveConfig(
        vocabulary=processor().vocabulary,
        negatives=pool,
        image_tokenizer=processor().image_tokenizer,
        image_size=48,
        resize_range=(48, 56),
        resize_max_size=80,
        max_image_size=64,
        infill_image_size=48,
        code_image_size=16,
        detection_image_size=48,
    )
    found: dict[str, list[Any]] = {}
    for name, function in OBJECTIVES.items():
        found.setdefault(RECORD_KIND[name], []).append(
            lambda record, rng, function=function: function(record, rng, config)
        )
    return found


def features(example: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts an example to features of a stream that takes all kinds of images."""
    from ofa_jax.data.features import Stream, to_features

    stream = Stream("a", "a", 2, {"inputs": 64, "targets": 64}, image_size=48, code_targets=True)
    return to_features(dict(example), stream, 0, np.random.default_rng(0))
