"""The parts of `tools.images_on_scenes`: image tokenizer, text-to-image, infilling."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ofa_jax.checkpoints import storage
from ofa_jax.data.sources.base import RecordSource
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.evaluation.metrics.images import psnr
from ofa_jax.inference.image_generation import ImageGeneration, matching_ranker
from ofa_jax.interop import image_tokenizer_file
from ofa_jax.preprocessing import images as image_ops
from ofa_jax.tokenizers import ImageTokenizer
from ofa_jax.tokenizers.processor import Processor
from ofa_jax.training.image_tokenizer.config import PerceptualFeatures
from ofa_jax.training.image_tokenizer.evaluation import evaluate_tokenizer, make_distance
from ofa_jax.training.image_tokenizer.features import load_features
from ofa_jax.utils import array_files, files, text_files

from . import contact_sheet, scene_image_scores, scene_image_start
from .contact_sheet import SheetRow
from .scene_image_scores import Asked, Found
from .scene_image_sets import ImageSets, Pixels, reconstruct, resize

SPLIT = "test"
_SHOWN = 6
_SIZE = "code_image_size.json"
_TRIED, _ENOUGH = 100, 0.6
"""Validation images to choose the size of generated images with, and the share of nouns to keep."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What the images depend on; see `tools.images_on_scenes --help`."""

    model_dir: pathlib.Path
    output_dir: pathlib.Path
    num_images: int = 500
    code_image_size: int | None = None
    num_candidates: int = 24
    guidance_scale: float = 3.0
    temperature: float = 1.0
    top_k: int = 256
    top_p: float = 1.0
    batch_size: int = 16
    seed: int = 0

    def generation(self, **changes: Any) -> ImageGeneration:
        """Returns how images are generated, with some fields changed."""
        return dataclasses.replace(
            ImageGeneration(
                self.num_candidates,
                self.temperature,
                self.top_k,
                self.top_p,
                self.guidance_scale,
            ),
            **changes,
        )


class ImageParts:
    """Makes the images of each part and measures them with one run on Scenes.

    Attributes:
      options: what the images depend on.
      scenes: the data set.
      checkpoint: the newest one of the run.
      processor: of the run.
      sets: the images on disk.
    """

    def __init__(self, options: Options, scenes: Scenes):
        """Reads the processor of the run.

        Raises:
          ValueError: the run has no image tokenizer.
        """
        self.options, self.scenes = options, scenes
        self.checkpoint = str(storage.find_checkpoint(str(options.model_dir)))
        self.processor = Processor.load(options.model_dir)
        if self.processor.image_tokenizer is None:
            raise ValueError(
                f"{options.model_dir} has no image tokenizer, so it generates no images: give the "
                "--model_dir of a run on all eight objectives of Scenes."
            )
        self.sets = ImageSets(
            options.output_dir, self.processor.image_size, options.batch_size, options.seed
        )

    @functools.cached_property
    def records(self) -> Any:
        """The test split, with all fields."""
        return self.scenes.records("all", SPLIT)

    @functools.cached_property
    def real(self) -> Pixels:
        """The first test images."""
        count = min(self.options.num_images, len(self.records))
        return self.sets.read(self.records, range(count))

    @functools.cached_property
    def captions(self) -> list[str]:
        """A caption of each test image: one of those it has, in turn."""
        return _captions(self.records, len(self.real))

    @functools.cached_property
    def features(self) -> scene_image_scores.Features:
        """The features of the run's ResNet."""
        return scene_image_scores.make_features(self.checkpoint)

    def write_start(self, tokenizer_dir: pathlib.Path) -> Processor:
        """Prepares the fine-tuning: gives the run the codes of a trained image tokenizer.

        Writes the checkpoint to start from, and the codes of the training and of the validation
        split, where they are not there yet.

        Returns:
          The processor of the start.

        Raises:
          ValueError: what is there is of another image tokenizer.
        """
        folder = self.options.output_dir / "start"
        tokenizer = image_tokenizer_file.read(tokenizer_dir)
        if not storage.list_checkpoints(str(folder)):
            scene_image_start.write_start(
                self.options.model_dir, tokenizer, self.scenes, folder, self.options.seed
            )
        processor = Processor.load(folder)
        size = self.choose_size(tokenizer)
        if not processor.equals(processor.replace(image_tokenizer=tokenizer)):
            raise ValueError(
                f"{self.options.output_dir} has codes of another image tokenizer than "
                f"{tokenizer_dir}: choose another --output_dir, or move it away."
            )
        for split in ("train", "validation"):
            self.sets.write_codes(
                self.scenes.records("captions", split),
                tokenizer,
                split,
                size,
            )
        return processor

    def choose_size(self, tokenizer: ImageTokenizer) -> int:
        """Returns the side of the images to generate, in pixels.

        Few codes are learned sooner, but must still show what is asked. Unless the user gives a
        size, it is the smallest of a half, three quarters and all of the run's image size in whose
        codes of validation images the run finds at least 60 % of the nouns, else that with most of
        them. The choice is kept in the folder.
        """
        if self.options.code_image_size is not None:
            return self.options.code_image_size
        path = self.options.output_dir / _SIZE
        if not path.exists():
            whole = self.sets.image_size
            shares = {size: self._share_found(tokenizer, size) for size in
                      (whole // 2, whole * 3 // 4, whole)}  # fmt: skip
            best = max(shares, key=lambda size: shares[size])
            chosen = next((size for size, share in shares.items() if share >= _ENOUGH), best)
            for size, share in shares.items():
                print(f"nouns found in images of {size} pixels from their codes: {share:.1%}")
            print(f"Generated images have {chosen} pixels; --code_image_size chooses.", flush=True)
            files.write_json(path, {"code_image_size": chosen, "shares": shares})
        return int(text_files.read_json(path)["code_image_size"])

    def _share_found(self, tokenizer: ImageTokenizer, size: int) -> float:
        """Returns the share of nouns found in validation images of a size from their codes."""
        records = self.scenes.records("all", "validation")
        count = min(_TRIED, len(records))
        coded = reconstruct(tokenizer, self.sets.read(records, range(count), size))
        seen = self.sets.find(f"coded_{size}", self.checkpoint, resize(coded, self.sets.image_size))
        asked = [scene_image_scores.parse_caption(text) for text in _captions(records, count)]
        return scene_image_scores.measure(asked, seen).nouns or 0.0

    # ------------------------------------------------------------------------------- tokenizer

    def measure_tokenizer(
        self, tokenizer_dir: pathlib.Path, results_dir: pathlib.Path
    ) -> dict[str, Any]:
        """Compares a trained image tokenizer with the codebook that was built with the scenes."""
        network, variables = load_features(PerceptualFeatures(self.checkpoint))
        distance = make_distance(network, variables)
        images = self.sets.read(
            self.records, range(min(len(self.records), self.options.num_images))
        )
        tokenizers = {
            "": image_tokenizer_file.read(tokenizer_dir),
            "codebook_": self.scenes.image_tokenizer(),
        }
        found: dict[str, Any] = {"images": len(images), "tokenizer_dir": str(tokenizer_dir)}
        rows = [SheetRow("real image", list(images[:_SHOWN]))]
        for prefix, tokenizer in tokenizers.items():
            size = self.options.batch_size
            batches = (images[start : start + size] for start in range(0, len(images), size))
            values = evaluate_tokenizer(tokenizer, batches, distance)
            found |= {prefix + name: value for name, value in values.items()}
            found[f"{prefix}num_codes"] = tokenizer.num_codes
            name = "codebook" if prefix else "VQGAN"
            rows.append(SheetRow(name, list(tokenizer.decode(tokenizer.encode(images[:_SHOWN])))))
        found["sheet"] = _save_sheet(results_dir, "images_tokenizer.png", rows)
        return found

    # --------------------------------------------------------------------------- text-to-image

    def measure_text_to_image(self, run: pathlib.Path, results_dir: pathlib.Path) -> dict[str, Any]:
        """Generates images of test captions, and looks in them for what was asked."""
        made = self._generate(str(storage.find_checkpoint(str(run))))
        training, training_features = self._training()
        made_features = {name: self.features(images) for name, images in made.items()}
        places, _ = scene_image_scores.nearest(made_features["generated"], training_features)
        made["nearest"] = self.sets.read(training, places.tolist())
        asked = [scene_image_scores.parse_caption(caption) for caption in self.captions]
        rows: dict[str, dict[str, Any]] = {}
        for name, images in made.items():
            seen = self.sets.find(name, self.checkpoint, images)
            rows[name] = self._row(asked, seen)
            if name == "generated":
                rows["shuffled_captions"] = self._row(scene_image_scores.shuffled(asked), seen)
            if name in made_features:
                # Real images have a distance, too: to as many of the training split.
                others = training_features[: len(images)] if name == "real" else made_features[name]
                rows[name] |= {
                    "frechet_distance": scene_image_scores.distance_to(
                        made_features["real"], others
                    ),
                    "nearest_training_image": _median_distance(
                        made_features[name], training_features
                    ),
                }
        sheet = [
            SheetRow(_NAMES[name], list(made[name][:_SHOWN]))
            for name in ("real", "generated", "one_sample", "nearest")
        ]
        texts = self.captions[:_SHOWN]
        return {
            "asked_nouns": rows["generated"]["nouns"],
            "real_images": rows["real"]["nouns"],
            "shuffled_captions": rows["shuffled_captions"]["nouns"],
            "nearest_training_images": rows["nearest"]["nouns"],
            "rows": rows,
            "images": len(self.real),
            "image_size": storage.read_model_config(run).code_image_size,
            "text_to_image_dir": str(run),
            "steps": max(storage.list_checkpoints(str(run))),
            "generation": self.options.generation().to_json() | {"reranker": "matching"},
            "sheet": _save_sheet(results_dir, "images_text_to_image.png", sheet, texts),
        }

    def _generate(self, checkpoint: str) -> dict[str, Pixels]:
        """Returns the sets of images: real ones, those that are generated, and reconstructed ones.

        The run on Scenes ranks the candidates. It also looks at the images, so `one_sample`, which
        nothing has chosen, shows what the ranking alone is worth.
        """
        ranker = matching_ranker(self.checkpoint, batch_size=self.options.batch_size)
        ways = {
            "generated": self.options.generation(reranker=ranker),
            "one_sample": self.options.generation(num_candidates=1),
        }
        made = {
            name: self.sets.generate(name, checkpoint, self.captions, way)
            for name, way in ways.items()
        }
        tokenizer = Processor.load(self.options.output_dir / "start").image_tokenizer
        assert tokenizer is not None
        coded = reconstruct(tokenizer, resize(self.real, self.choose_size(tokenizer)))
        return {"real": self.real, **made, "reconstructed": resize(coded, self.sets.image_size)}

    def _training(self) -> tuple[Any, np.ndarray]:
        """Returns the training records, and the features of all their images."""
        records = self.scenes.records("images", "train")
        path = self.options.output_dir / "training_features.npz"
        if path.exists():
            return records, array_files.load_arrays(path)["features"]
        found = np.concatenate([self.features(images) for _, images in self.sets.chunks(records)])
        with files.atomic_path(path) as unfinished, unfinished.open("wb") as file:
            np.savez(file, features=found)
        return records, found

    def _row(self, asked: Sequence[Asked], seen: Sequence[Found]) -> dict[str, Any]:
        return dataclasses.asdict(scene_image_scores.measure(asked, seen))

    # ------------------------------------------------------------------------------- infilling

    def measure_infilling(self, results_dir: pathlib.Path) -> dict[str, Any]:
        """Infills the middle of test images, and looks in them for what is there in truth."""
        middles = self.sets.infill("to_infill", self.checkpoint, self.real)
        side, size = middles.shape[1], self.real.shape[1]
        place = image_ops.center_slice(size, side)
        true = self.real[:, place, place]
        tokenizer = self.processor.image_tokenizer
        assert tokenizer is not None
        hidden = np.stack([image_ops.blank_center(image, side)[0] for image in self.real])
        made = {
            "real": self.real,
            "infilled": _with_middles(self.real, middles, place),
            "reconstructed": _with_middles(self.real, reconstruct(tokenizer, true), place),
            "hidden": hidden,
        }
        asked = [_objects_within(self.records[number], place) for number in range(len(self.real))]
        rows = {}
        for name, images in made.items():
            own = name if name == "real" else f"{name}_middle"
            rows[name] = self._row(asked, self.sets.find(own, self.checkpoint, images))
            if name != "real":
                rows[name] |= psnr(list(true), list(images[:, place, place]))
        sheet = [SheetRow(_NAMES[name], list(images[:_SHOWN])) for name, images in made.items()]
        return {
            "asked_nouns": rows["infilled"]["nouns"],
            "real_images": rows["real"]["nouns"],
            "hidden_middle": rows["hidden"]["nouns"],
            "psnr": rows["infilled"]["psnr"],
            "rows": rows,
            "images": len(self.real),
            "sheet": _save_sheet(results_dir, "images_infilling.png", sheet),
        }


_NAMES = {
    "real": "real image",
    "generated": "generated, the best candidate",
    "one_sample": "generated, one sample",
    "nearest": "nearest training image",
    "infilled": "middle infilled",
    "reconstructed": "true codes",
    "hidden": "middle hidden",
}


def _captions(records: RecordSource, count: int) -> list[str]:
    """Returns a caption of each of the first records: one of those it has, in turn."""
    found = (records[number]["captions"] for number in range(count))
    return [captions[number % len(captions)] for number, captions in enumerate(found)]


def _median_distance(features: np.ndarray, others: np.ndarray) -> float:
    """Returns the median distance of images to the nearest one of others."""
    return float(np.median(scene_image_scores.nearest(features, others)[1]))


def _with_middles(images: Pixels, middles: Pixels, place: slice) -> Pixels:
    """Returns images with other middles."""
    made = images.copy()
    made[:, place, place] = middles
    return made


def _objects_within(record: Any, place: slice) -> Asked:
    """Returns the nouns whose objects all have their centre in the middle of the image."""
    inside: dict[str, list[bool]] = {}
    for label, (x0, y0, x1, y1) in zip(
        record["object_labels"], np.asarray(record["object_boxes"]).tolist(), strict=True
    ):
        center = ((x0 + x1) / 2, (y0 + y1) / 2)
        within = all(place.start <= value < place.stop for value in center)
        inside.setdefault(label, []).append(within)
    return Asked({label: len(found) for label, found in inside.items() if all(found)})


def _save_sheet(
    folder: pathlib.Path, name: str, rows: Sequence[SheetRow], texts: Sequence[str] = ()
) -> str:
    """Writes a contact sheet; returns its name."""
    with files.atomic_path(folder / name) as unfinished, unfinished.open("wb") as file:
        contact_sheet.draw(rows, texts).save(file, "PNG", optimize=True)
    return name
