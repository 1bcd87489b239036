"""Checks every text about a scene with a reader that knows only the text and the boxes.

The reader shares no code with the library: it parses the English and decides from labels and boxes
with its own simple geometry (centres, no margins).
"""

import re

import numpy as np
import pytest

from ofa_jax.scenes import nouns, records
from ofa_jax.scenes.composer import SceneOptions
from ofa_jax.scenes.questions import ANSWER_TYPES

NUMBERS = {
    "a": 1,
    "an": 1,
    "one": 1,
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
}
NAMES = {form: noun.name for noun in nouns.all_nouns() for form in (noun.name, noun.plural)}
SINGULAR = {noun.name for noun in nouns.all_nouns()}
BACKGROUNDS = {"on grass", "on gravel", "on bricks", "on wood", "in outer space"}
RELATION = "to the left of|to the right of|above|below"
SIZE = 128


@pytest.fixture(scope="module")
def scenes():
    return [
        records.make_record(SceneOptions(nouns=count, seed=5), split, index)
        for count, split in ((40, "train"), (40, "test_shifted"), (250, "train"))
        for index in range(120)
    ]


class Reader:
    """Answers questions from a record's labels and boxes."""

    def __init__(self, record):
        self.labels = record["object_labels"]
        self.boxes = np.asarray(record["object_boxes"], np.float64)
        self.centres = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        self.areas = np.prod(self.boxes[:, 2:] - self.boxes[:, :2], axis=1)

    def named(self, name):
        return [i for i, label in enumerate(self.labels) if label == NAMES[name]]

    def one(self, name):
        (index,) = self.named(name)
        return index

    def related(self, a, relation, b):
        dx, dy = self.centres[b] - self.centres[a]
        return {
            "to the left of": dx > 0,
            "to the right of": dx < 0,
            "above": dy > 0,
            "below": dy < 0,
        }[relation]

    def half(self, i, words):
        x, y = self.centres[i] / SIZE
        return {"left": x < 0.5, "right": x > 0.5, "top": y < 0.5, "bottom": y > 0.5}[words]

    def in_corner(self, i, words):
        return all(self.half(i, word) for word in words.split())

    def is_true(self, caption, background=None):
        """Returns whether a caption is true; counts are lower bounds unless it says "exactly"."""
        text = re.sub(r"^(a picture of|there is|there are) ", "", caption)
        stated = next((phrase for phrase in BACKGROUNDS if text.endswith(" " + phrase)), None)
        if stated:
            text = text[: -len(stated) - 1]
            if background is not None and stated.split(" ", 1)[1] != background:
                return False
        corner = re.search(r" in the (\w+ \w+) corner$", text)
        if corner:
            text = text[: corner.start()]
        related = re.fullmatch(rf"(.+) ({RELATION}) (.+)", text)
        if related:
            first, second = (self.parse(part)[0] for part in related.group(1, 3))
            return any(
                self.related(a, related.group(2), b)
                for a in self.named(first)
                for b in self.named(second)
            )
        exact = text.startswith("exactly ")
        parts = re.split(r", | and ", text.removeprefix("exactly "))
        for name, count in map(self.parse, parts):
            found = self.named(name)
            if corner:
                found = [i for i in found if self.in_corner(i, corner.group(1))]
            if len(found) < count or exact and len(found) != count:
                return False
        return True

    def parse(self, part):
        word, name = part.split(" ", 1)
        assert (name in SINGULAR) or NUMBERS[word] > 1, part
        assert NAMES[name] == name or NUMBERS[word] > 1, part
        return name, NUMBERS[word]

    def answer(self, question):
        def match(pattern):
            return re.fullmatch(pattern, question)

        if found := match(r"(?:is there (?:an?)|are there any) (.+) in the picture\?"):
            return "yes" if self.named(found[1]) else "no"
        if match(r"how many objects are there\?"):
            return str(len(self.labels))
        if match(r"how many kinds of objects are there\?"):
            return str(len(set(self.labels)))
        if found := match(r"how many (.+) are there\?"):
            return str(len(self.named(found[1])))
        if found := match(r"is the (.+) on the left or on the right\?"):
            return "left" if self.half(self.one(found[1]), "left") else "right"
        if found := match(r"is the (.+) at the top or at the bottom\?"):
            return "top" if self.half(self.one(found[1]), "top") else "bottom"
        if found := match(r"in which corner is the (.+)\?"):
            return next(
                c
                for c in ("top left", "top right", "bottom left", "bottom right")
                if self.in_corner(self.one(found[1]), c)
            )
        if found := match(r"is the (.+) to the left or to the right of the (.+)\?"):
            a, b = self.one(found[1]), self.one(found[2])
            return "left" if self.related(a, "to the left of", b) else "right"
        if found := match(r"is the (.+) above or below the (.+)\?"):
            a, b = self.one(found[1]), self.one(found[2])
            return "above" if self.related(a, "above", b) else "below"
        if found := match(rf"is the (.+) ({RELATION}) the (.+)\?"):
            a, b = self.one(found[1]), self.one(found[3])
            return "yes" if self.related(a, found[2], b) else "no"
        if found := match(r"are there more (.+) than (.+)\?"):
            return "yes" if len(self.named(found[1])) > len(self.named(found[2])) else "no"
        if found := match(r"what is (.+)\?"):
            return self.labels[self.only(f"the object {found[1]}")]
        raise AssertionError(f"The reader does not understand {question!r}.")

    def only(self, phrase):
        """Returns the index of the one object that a phrase can refer to."""
        if phrase == "the object in the picture":
            (index,) = range(len(self.labels))
            return index
        phrase = re.sub(
            r"^the object the (largest|smallest) object in the picture$", r"the \1 object", phrase
        )
        rest = phrase.removeprefix("the ")
        found = re.fullmatch(r"(leftmost|rightmost|top|bottom|largest|smallest) (.+)", rest)
        if found and (found[2] == "object" or found[2] in SINGULAR):
            pool = self.pool(found[2])
            key = {
                "leftmost": self.centres[:, 0],
                "rightmost": -self.centres[:, 0],
                "top": self.centres[:, 1],
                "bottom": -self.centres[:, 1],
                "largest": -self.areas,
                "smallest": self.areas,
            }[found[1]]
            ranked = sorted(pool, key=lambda i: key[i])
            assert len(ranked) > 1 and key[ranked[0]] < key[ranked[1]], phrase
            return ranked[0]
        found = re.fullmatch(r"(.+?) (?:on|at) the (left|right|top|bottom)", rest)
        if found:
            referred = [i for i in self.pool(found[1]) if self.half(i, found[2])]
        elif found := re.fullmatch(rf"(.+?) ({RELATION}) the (.+)", rest):
            anchor = self.one(found[3])
            referred = [
                i for i in self.pool(found[1]) if i != anchor and self.related(i, found[2], anchor)
            ]
        else:
            referred = self.pool(rest)
        assert len(referred) == 1, (phrase, referred)
        return referred[0]

    def pool(self, name):
        return list(range(len(self.labels))) if name == "object" else self.named(name)


def background_of(record):
    found = {
        phrase.split(" ", 1)[1]
        for text in record["captions"]
        for phrase in BACKGROUNDS
        if text.endswith(" " + phrase)
    }
    answers = [
        answer
        for answer, kind in zip(record["answers"], record["answer_types"], strict=True)
        if kind == "background"
    ]
    found.update(answers)
    assert len(found) <= 1, "two backgrounds in one scene"
    return found.pop() if found else None


def test_captions_are_true(scenes):
    for record in scenes:
        for caption in record["captions"]:
            assert Reader(record).is_true(caption), (caption, record["object_labels"])


def test_negative_captions_are_false(scenes):
    for record in scenes:
        assert len(record["negative_captions"]) == len(set(record["negative_captions"])) == 4
        for caption in record["negative_captions"]:
            assert not Reader(record).is_true(caption, background_of(record) or "unnamed"), (
                caption,
                record["object_labels"],
            )


def test_negatives_cannot_be_recognised_by_their_length_alone(scenes):
    """At least half of the negatives have as many words as a true caption."""
    same = [
        len(negative.split()) in {len(caption.split()) for caption in record["captions"]}
        for record in scenes
        for negative in record["negative_captions"]
    ]
    assert np.mean(same) > 0.5


def test_answers_are_correct(scenes):
    kinds = set()
    for record in scenes:
        assert len(record["questions"]) == len(record["answers"]) == len(record["answer_types"])
        for question, answer, kind in zip(
            record["questions"], record["answers"], record["answer_types"], strict=True
        ):
            kinds.add(kind)
            if kind != "background":
                assert Reader(record).answer(question) == answer, (
                    question,
                    record["object_labels"],
                )
    assert kinds == set(ANSWER_TYPES)


def test_yes_and_no_are_both_frequent(scenes):
    for kind in ("existence", "relation"):
        answers = [
            a
            for record in scenes
            for a, k in zip(record["answers"], record["answer_types"], strict=True)
            if k == kind
        ]
        # Both have probability 1/2: four standard deviations of the mean of n coin flips.
        assert abs(np.mean([a == "yes" for a in answers]) - 0.5) < 4 * 0.5 / len(answers) ** 0.5


def test_phrases_refer_to_exactly_one_object(scenes):
    for record in scenes:
        for phrases, boxes in (("phrases", "phrase_boxes"), ("true_phrases", "true_phrase_boxes")):
            assert len(record[phrases]) == len(record[boxes]) > 0
            for phrase, box in zip(record[phrases], record[boxes], strict=True):
                index = Reader(record).only(phrase)
                np.testing.assert_array_equal(record["object_boxes"][index], box, err_msg=phrase)


def test_sampled_phrases_are_among_the_true_phrases(scenes):
    for record in scenes:
        known = {
            (phrase, tuple(box))
            for phrase, box in zip(record["true_phrases"], record["true_phrase_boxes"], strict=True)
        }
        assert len(known) == len(record["true_phrases"])
        assert known >= {
            (phrase, tuple(box))
            for phrase, box in zip(record["phrases"], record["phrase_boxes"], strict=True)
        }


def test_the_reader_detects_false_captions(scenes):
    """Tests the reader itself: a swapped box or a wrong count does not pass."""
    record = next(
        r
        for r in scenes
        if len(set(r["object_labels"])) == 2 and any(" to the left of " in c for c in r["captions"])
    )
    mirrored = dict(record, object_boxes=np.asarray(record["object_boxes"])[::-1])
    caption = next(c for c in record["captions"] if " to the left of " in c)
    assert Reader(record).is_true(caption)
    assert not Reader(mirrored).is_true(caption)
    assert not Reader(record).is_true("exactly seven " + nouns.plural(record["object_labels"][0]))
