"""The reward of self-critical training."""

import numpy as np
import pytest

from ofa_jax.evaluation.metrics.cider import CiderD
from ofa_jax.evaluation.rewards import CaptionReward, ImageReward, words
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.tokenizers import PatchCodebook
from ofa_jax.tokenizers.processor import Processor

TEXT = {0: "<s>", 1: "", 2: "", 5: " a", 6: " red", 7: " dog", 8: " tree", 9: "."}


def decode(ids):
    return "".join(TEXT[int(index)] for index in ids)


REFERENCES = {"captions": [["A red dog.", "a dog"], ["a tree"], []]}


def test_words_are_lower_case_without_punctuation_and_end_with_eos():
    assert words("A man's red-and-blue hat.") == ["a", "mans", "redandblue", "hat", "<eos>"]
    assert words("") == ["<eos>"]


def test_reward_is_cider_d_of_every_sample():
    reward = CaptionReward(REFERENCES, decode)
    samples = np.array(
        [
            [[5, 6, 7, 2], [5, 8, 2, 1]],
            [[5, 8, 9, 2], [7, 7, 2, 1]],
            [[5, 2, 1, 1], [2, 1, 1, 1]],
        ]
    )
    rewards = reward([("captions", 0), ("captions", 1), ("captions", 2)], samples)
    scorer = CiderD.of_references([[words("a red dog"), words("a dog")], [words("a tree")]])
    np.testing.assert_allclose(
        rewards[0],
        scorer.score([words("a red dog"), words("a tree")], [words("a red dog"), words("a dog")]),
    )
    np.testing.assert_allclose(
        rewards[1], scorer.score([words("a tree"), words("dog dog")], [words("a tree")])
    )
    # n = 1 ... 3 are perfect ("a tree <eos>" has no n = 4).
    assert rewards[1, 0] == pytest.approx(7.5) and rewards[0, 0] > rewards[0, 1]
    assert np.isnan(rewards[2]).all()


def test_captions_are_read_once_and_invalid_records_have_none():
    class Records:
        reads = 0

        def __len__(self):
            return 3

        def __getitem__(self, index):
            self.reads += 1
            if index == 2:
                raise InvalidRecordError("torn")
            return {"captions": REFERENCES["captions"][index], "image": b""}

    records = Records()
    reward = CaptionReward.of_records({"captions": records}, decode)
    samples = np.array([[[5, 8, 2]], [[5, 8, 2]]])
    assert reward([("captions", 1), ("captions", 2)], samples)[0, 0] == pytest.approx(7.5)
    assert np.isnan(reward([("captions", 2)], samples[:1])).all()
    assert records.reads == 3


def test_records_without_captions_are_refused():
    with pytest.raises(ValueError, match="The records of questions have no captions"):
        CaptionReward.of_records({"questions": [{"question": "?"}]}, decode)


def test_captions_without_words_are_no_references():
    class Records:
        captions = (
            "a red dog",
            ["a red dog", None, "", "?!", 7],
            None,
            [" "],
            {"a": 1},
            ["a tree"],
        )

        def __len__(self):
            return len(self.captions)

        def __getitem__(self, index):
            return {"captions": self.captions[index]}

    reward = CaptionReward.of_records({"odd": Records()}, decode)
    clean = CaptionReward({"odd": [[], ["a red dog"], [], [], [], ["a tree"]]}, decode)
    samples = np.array([[[5, 6, 7, 2]]] * 6)
    ids = [("odd", index) for index in range(6)]
    np.testing.assert_array_equal(reward(ids, samples), clean(ids, samples))
    assert np.isfinite(clean(ids, samples)).ravel().tolist() == [False, True, *[False] * 3, True]


class Brightness:
    """Prefers bright images; of dark ones dark images."""

    name = "brightness"

    def score(self, captions, images):
        signs = np.array([-1.0 if "dark" in caption else 1.0 for caption in captions])
        return signs * images.mean(axis=(1, 2, 3))


def test_images_are_rewarded_by_what_a_ranker_says_of_them(vocabulary):
    levels = np.linspace(0, 240, 16, dtype=np.float32)[:, None] * np.ones((1, 192), np.float32)
    processor = Processor(vocabulary, PatchCodebook(levels))
    captions = [["a bright apple", "dark"], ["a dark apple"], [], None]
    records = {"text_to_image": [{"captions": own} for own in captions]}
    first = vocabulary.code_ids.start
    codes = np.random.default_rng(0).integers(0, 16, (4, 3, 4))
    samples = codes + first
    samples[0, 2, 1] = 5  # a word
    found = ImageReward(records, processor, Brightness())(
        [("text_to_image", row) for row in range(4)], samples
    )
    means = levels[codes, 0].mean(axis=-1)
    np.testing.assert_allclose(found[0, :2], 2.5 * means[0, :2], atol=2)
    np.testing.assert_allclose(found[1], -2.5 * means[1], atol=2)
    assert np.isnan(found[0, 2]) and np.isnan(found[2:]).all()
    with pytest.raises(ValueError, match="set DownstreamSettings.image_tokenizer"):
        ImageReward(records, Processor(vocabulary), Brightness())
