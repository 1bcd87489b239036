"""Scenes for tasks after pretraining: other scenes, some new nouns, and other words.

A downstream task asks what a pretrained model has learned that helps elsewhere. So its scenes are
not those of pretraining, a part of their objects has nouns that no scene of pretraining shows, and
its captions and questions are worded anew (`ofa_jax.scenes.rewording`).
"""

import dataclasses
from typing import Any

from ofa_jax.scenes import captions, composer, nouns, questions, records, rewording
from ofa_jax.scenes.composer import SceneOptions
from ofa_jax.scenes.nouns import Noun

_SEED = 20220203
"""Added to the seed of pretraining, so that the scenes differ from those of its every split."""
_NUM_QUESTIONS = 6


@dataclasses.dataclass(frozen=True)
class DownstreamScenes(SceneOptions):
    """The options of downstream scenes.

    Attributes:
      new_nouns: number of nouns besides those of pretraining, the next ones of the table.
    """

    new_nouns: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        available = len(nouns.all_nouns()) - self.nouns
        if not 0 <= self.new_nouns <= available:
            raise ValueError(
                f"{available} nouns of the table are not in the scenes of pretraining: set "
                f"new_nouns to 0 to {available}, not {self.new_nouns}."
            )

    @property
    def vocabulary(self) -> tuple[Noun, ...]:
        """The nouns of pretraining, and then the new ones."""
        return nouns.all_nouns()[: self.nouns + self.new_nouns]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all nouns."""
        return tuple(noun.name for noun in self.vocabulary)

    @property
    def new_names(self) -> tuple[str, ...]:
        """The names that no text of pretraining has."""
        return self.names[self.nouns :]


def make_record(options: DownstreamScenes, split: str, index: int) -> dict[str, Any]:
    """Composes scene `index` of a split; a pure function of its arguments.

    Returns:
      id str; image bytes (JPEG); label str, the noun of the first object; captions list[str], in
      each wording of `rewording.CAPTIONS`; image_caption str, for text-to-image; questions,
      answers, answer_types list[str], parallel; object_labels list[str].
    """
    own = dataclasses.replace(options, seed=options.seed + _SEED)
    rng = composer.make_generator(own, split, index)
    scene, image = composer.compose(own, records.STYLE_OF_SPLIT[split], rng)
    objects = captions.true_statements(scene)[0].to_text()
    asked = questions.sample_questions(scene, _NUM_QUESTIONS, rng)
    caption = objects
    if scene.background is not None:
        caption = rewording.IMAGE_CAPTION.format(objects=objects, background=scene.background)
    return {
        "id": f"downstream-{split}-{index:07d}",
        "image": records.encode_jpeg(image),
        "label": scene.objects[0].noun.name,
        "captions": [template.format(objects=objects) for template in rewording.CAPTIONS],
        "image_caption": caption,
        "questions": [rewording.reword_question(question.text) for question in asked],
        "answers": [question.answer for question in asked],
        "answer_types": [question.type for question in asked],
        "object_labels": [item.noun.name for item in scene.objects],
    }
