"""Caption metrics against the official evaluation of COCO captions.

The expected numbers were computed with pycocoevalcap 1.2 (its Java tokeniser included) on the
captions below: CIDEr-D per image, the others over all images.
"""

import itertools
import shutil
import time

import numpy as np
import pytest

from ofa_jax.evaluation.metrics import captions
from ofa_jax.evaluation.metrics.cider import CiderD
from ofa_jax.evaluation.metrics.words import tokenize

REFERENCES = [
    [
        "A man's black-and-white dog is running in the park.",
        "A dog runs through the green park!",
        "there is a dog (a big one) in a park",
    ],
    [
        "Two red apples on a wooden table",
        "a couple of apples sitting on top of a table.",
        "Two apples, one knife and a table",
    ],
    [
        "A train at the station: it doesn't move",
        "the 7:30 train isn't leaving the station",
        "A long train is standing at St. James station.",
    ],
    [
        "a group of people riding horses on the beach",
        "People ride horses along the beach",
        "three people on horses at the beach",
        "a few horses and riders by the ocean",
    ],
    ["A cat", "a cat sleeping on a laptop"],
]
PREDICTIONS = [
    "a black-and-white dog running in the park",
    "two apples on a table.",
    "a train that is at a train station",
    "people riding horses on a beach with the ocean",
    "dogs dogs dogs",
]
CIDER_D = [2.00744125, 2.42764535, 1.03472587, 1.94697146, 0.0]
BLEU = [0.7572134643873181, 0.5944469548633867, 0.4269731951555288, 0.30693951424852667]
ROUGE_L = 0.5489532066037197
METEOR = 0.31500767544389324


def test_cider_d_equals_the_official_one_to_eight_digits():
    scorer = CiderD.of_references(
        [[tokenize(x) for x in captions_of_image] for captions_of_image in REFERENCES]
    )
    scores = [
        scorer.score([tokenize(prediction)], [tokenize(x) for x in own])[0]
        for own, prediction in zip(REFERENCES, PREDICTIONS, strict=True)
    ]
    np.testing.assert_allclose(scores, CIDER_D, rtol=1e-8, atol=1e-8)
    mean = captions.cider_d(REFERENCES, PREDICTIONS)["cider_d"]
    np.testing.assert_allclose(mean, 1.4833567869558013, rtol=1e-12)


def test_bleu_equals_the_official_one_except_for_its_tiny_smoothing():
    values = captions.bleu(REFERENCES, PREDICTIONS)
    np.testing.assert_allclose([values[f"bleu_{n}"] for n in (1, 2, 3, 4)], BLEU, rtol=1e-8)


def test_rouge_l_equals_the_official_one():
    value = captions.rouge_l(REFERENCES, PREDICTIONS)["rouge_l"]
    np.testing.assert_allclose(value, ROUGE_L, rtol=1e-12)


def test_caption_metrics_contain_all_metrics_with_cider_d_first():
    values = captions.caption_metrics(REFERENCES, PREDICTIONS)
    expected = (
        captions.cider_d(REFERENCES, PREDICTIONS)
        | captions.bleu(REFERENCES, PREDICTIONS)
        | captions.rouge_l(REFERENCES, PREDICTIONS)
    )
    assert list(values)[0] == "cider_d"
    assert {name: values[name] for name in expected} == expected
    assert set(values) - set(expected) <= {"meteor", "spice"}


def test_meteor_equals_the_official_one_where_it_can_run():
    pytest.importorskip("pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("METEOR is a Java program")
    value = captions.meteor_and_spice(REFERENCES, PREDICTIONS)["meteor"]
    np.testing.assert_allclose(value, METEOR, rtol=1e-6)


def test_without_java_meteor_and_spice_are_left_out_with_one_warning(monkeypatch, caplog):
    monkeypatch.setattr(shutil, "which", lambda program: None)
    captions._warn_once.cache_clear()
    with caplog.at_level("WARNING", logger="absl"):
        assert captions.meteor_and_spice(REFERENCES, PREDICTIONS) == {}
        assert captions.meteor_and_spice(REFERENCES, PREDICTIONS) == {}
    assert [record.message for record in caplog.records if "no java" in record.message] == [
        record.message for record in caplog.records
    ]
    assert len(caplog.records) == 1


# The output of the Java tokeniser for each caption, without punctuation.
WORDS = {
    "A man's black-and-white dog, running! in the park.": "a man 's black-and-white dog running in the park",
    "don't can't cannot gonna wanna it's they're we've I'm he'd she'll": "do n't ca n't can not gon na wan na it 's they 're we 've i 'm he 'd she 'll",
    "Mr. Smith at the U.S. Capitol vs. e.g. a.m. 3.5 1,000 $5.00 50% #1": "mr. smith at the u.s. capitol vs. e.g. a.m. 3.5 1,000 $ 5.00 50 % # 1",
    "and/or a * b \"quoted text\" 'single' (paren) [bracket] {brace}": "and/or a * b quoted text single -lrb- paren -rrb- -lsb- bracket -rsb- -lcb- brace -rcb-",
    "...wait -- what? a.b.c A&B AT&T rock 'n' roll 1980's '80s 7:30 3/4": "wait what a.b.c a&b at&t rock 'n' roll 1980 's '80s 7:30 3/4",
    "o'clock y'all ma'am jack-o-lantern t-shirt the dogs' tails": "o'clock y' all ma'am jack-o-lantern t-shirt the dogs tails",
    "x-ray 2-story 10-year-old teddy-bear's—dash – en … “curly” ‘q’": "x-ray 2-story 10-year-old teddy-bear 's dash en curly q",
    "lemme gimme 'tis 'twas gotta": "lem me gim me 't is 't was got ta",
    "St. Louis Ave. No. 5 Jan. 5 jr. etc.": "st. louis ave. no. 5 jan. 5 jr. etc.",
    "can't've couldn't've 'em c'mon 100th 5pm": "ca n't 've could n't 've 'em c'mon 100th 5pm",
    "-5 +5 .5 what ?! !!": "-5 +5 .5 what ?! !!",
    "stop sign that reads stop.": "stop sign that reads stop",
    "": "",
}


@pytest.mark.parametrize("caption", WORDS)
def test_tokenize_equals_the_java_tokeniser(caption):
    assert " ".join(tokenize(caption)) == WORDS[caption]


def test_scorer_uses_the_document_frequencies_of_its_corpus():
    scorer = CiderD.of_references([[["a", "red", "dog"]], [["a", "tree"]]])
    # "a" is in both images and has weight 0; n = 1, 2, 3 are perfect, and there is no n = 4.
    np.testing.assert_allclose(scorer.score([["a", "red", "dog"]], [["a", "red", "dog"]]), [7.5])
    # One of three unigrams with weights log 2, log 2, 0: cosine 1/sqrt(2), for one n of four; one
    # bigram fewer than in the reference: exp(-1/72).
    expected = 10 / 4 * (1 / np.sqrt(2) + 0) * np.exp(-1 / 72)
    np.testing.assert_allclose(scorer.score([["red", "a"]], [["a", "red", "dog"]]), [expected])


def test_repeating_a_correct_word_lowers_the_score():
    scorer = CiderD.of_references([[["red", "dog"]], [["tree"]]])
    once, thrice = scorer.score([["dog"], ["dog", "dog", "dog"]], [["red", "dog"]])
    # min(3 w, w) w / (3 w * sqrt(2) w) = 1 / (3 sqrt(2)).
    np.testing.assert_allclose(once, 2.5 / np.sqrt(2) * np.exp(-1 / 72))
    np.testing.assert_allclose(thrice, 2.5 / (3 * np.sqrt(2)) * np.exp(-1 / 72))


def test_longest_common_subsequence_equals_exhaustive_search():
    rng = np.random.default_rng(0)

    def exhaustive(first, second):
        return max(
            (
                size
                for size in range(len(first) + 1)
                for chosen in itertools.combinations(first, size)
                if _is_within(chosen, second)
            ),
            default=0,
        )

    for _ in range(100):
        first, second = (list(rng.choice(list("abc"), rng.integers(0, 8))) for _ in range(2))
        assert captions.common_subsequence(first, second) == exhaustive(first, second)


def _is_within(chosen, words):
    words = iter(words)
    return all(word in words for word in chosen)


@pytest.mark.parametrize("metric", [captions.cider_d, captions.bleu, captions.rouge_l])
def test_an_empty_or_missing_prediction_scores_zero(metric):
    whole = metric(REFERENCES, PREDICTIONS)
    for empty in ("", None, " .!"):
        assert all(value == 0 for value in metric(REFERENCES[:1], [empty]).values())
        part = metric(REFERENCES, [empty, *PREDICTIONS[1:]])
        assert all(part[name] < whole[name] for name in whole)


def test_cider_d_of_a_single_image_is_zero_without_a_corpus():
    assert captions.cider_d([["a dog"]], ["a dog"]) == {"cider_d": 0.0}
    corpus = CiderD.of_references(
        [[tokenize(x) for x in captions_of_image] for captions_of_image in REFERENCES]
    )
    own = ["a dog in the park"]
    assert captions.cider_d([own], own, corpus)["cider_d"] == pytest.approx(10)


@pytest.mark.parametrize(
    ("references", "predictions", "message"),
    [
        ([["a"], []], ["a", "b"], "example 1 has no references"),
        ([["a"]], ["a", "b"], "references of 1 examples and 2 predictions"),
        ([], [], "got no examples"),
        (["a dog"], ["a dog"], "the string 'a dog'"),
    ],
)
def test_caption_metrics_report_invalid_input(references, predictions, message):
    with pytest.raises(ValueError, match=message):
        captions.caption_metrics(references, predictions)


def test_caption_metrics_score_hundreds_of_captions_a_second():
    rng = np.random.default_rng(0)
    vocabulary = np.array([f"word{i}" for i in range(2000)])
    texts = [" ".join(words) for words in vocabulary[rng.integers(0, 2000, (2500, 10))]]
    references = [
        [texts[i], texts[i - 1], texts[i - 2], texts[i - 3], texts[i - 4]] for i in range(2500)
    ]
    start = time.process_time()
    captions.cider_d(references, texts)
    captions.bleu(references, texts)
    captions.rouge_l(references, texts)
    # At this bound 25,000 captions would take 150 s; they take 16 s.
    assert time.process_time() - start < 15
