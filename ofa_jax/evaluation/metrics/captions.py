"""How close captions are to what people wrote: CIDEr-D, BLEU, ROUGE-L, METEOR and SPICE.

The first three need neither Java nor downloads and give the numbers of the official evaluation of
COCO captions (pycocoevalcap). References: list[list[str]], those of every image.
"""

import functools
import math
import shutil
from collections.abc import Sequence

from absl import logging
from sacrebleu.metrics import BLEU

from ofa_jax.evaluation.metrics import inputs
from ofa_jax.evaluation.metrics.cider import CiderD, Words
from ofa_jax.evaluation.metrics.words import tokenize

References = Sequence[Sequence[str]]
_MAX_ORDER = 4
_BETA = 1.2
"""Recall counts beta^2 times as much as precision in COCO's ROUGE-L."""


def cider_d(
    references: References, answers: Sequence[str | None], scorer: CiderD | None = None
) -> dict[str, float]:
    """ "cider_d", between 0 and 10: the mean over the images.

    Args:
      references: of every image.
      answers: its caption.
      scorer: holds the document frequencies of another corpus (over words of `tokenize`); those of
        these references when None, as papers do. Of a single image they say nothing, and its
        score is 0.
    """
    return _cider_d(*_words("cider_d", references, answers), scorer)


def bleu(references: References, answers: Sequence[str | None]) -> dict[str, float]:
    """ "bleu_1" to "bleu_4": BLEU of the whole corpus (Papineni et al. 2002), by sacrebleu.

    Counts, closest reference length and brevity penalty are those of COCO's evaluation, which adds
    1e-9 or less to its counts: it differs by less than 1e-8, or where no n-gram of an order is
    right at all, which is 0 here and up to 1e-2 there.
    """
    return _bleu(*_words("bleu", references, answers))


def rouge_l(references: References, answers: Sequence[str | None]) -> dict[str, float]:
    """ "rouge_l": COCO's, not that of rouge-score, which has neither several references nor beta.

    The longest common subsequence over the caption's length (precision) and over the reference's
    (recall), the best of each among the references, in an F-measure with beta = 1.2.
    """
    return _rouge_l(*_words("rouge_l", references, answers))


def meteor_and_spice(references: References, answers: Sequence[str | None]) -> dict[str, float]:
    """ "meteor" and "spice", by the Java programs in pycocoevalcap; {} without it or without Java.

    Neither is required: `pip install pycocoevalcap`, and Java. SPICE also downloads models when it
    is first used; what does not run is said once, and left out.
    """
    return _meteor_and_spice(*_words("meteor_and_spice", references, answers))


def caption_metrics(references: References, answers: Sequence[str | None]) -> dict[str, float]:
    """All of them; CIDEr-D first."""
    words = _words("caption_metrics", references, answers)
    return _cider_d(*words, None) | _bleu(*words) | _rouge_l(*words) | _meteor_and_spice(*words)


def _words(
    metric: str, references: References, answers: Sequence[str | None]
) -> tuple[list[list[Words]], list[Words]]:
    """The words of all references and answers, checked."""
    inputs.check_pairs(metric, references, answers)
    for number, own in enumerate(references):
        if isinstance(own, str):
            raise ValueError(
                f"{metric}: the references of example {number} are the string {own!r}; give a list "
                "of captions."
            )
    inputs.check_references(metric, references)
    return (
        [[tokenize(caption) for caption in own] for own in references],
        [tokenize(inputs.text(answer)) for answer in answers],
    )


def _cider_d(references, answers, scorer: CiderD | None) -> dict[str, float]:
    scorer = scorer or CiderD.of_references(references)
    scores = [
        scorer.score([answer], own)[0] for own, answer in zip(references, answers, strict=True)
    ]
    return {"cider_d": math.fsum(scores) / len(scores)}


def _bleu(references, answers) -> dict[str, float]:
    most = max(map(len, references))
    # sacrebleu wants the first references of all images, then the second ones ...
    by_place = [
        [" ".join(own[place]) if place < len(own) else None for own in references]
        for place in range(most)
    ]
    counter = BLEU(tokenize="none", smooth_method="none", max_ngram_order=_MAX_ORDER, force=True)
    total = counter.corpus_score([" ".join(answer) for answer in answers], by_place)
    return {
        f"bleu_{order}": BLEU.compute_bleu(
            total.counts[:order],
            total.totals[:order],
            total.sys_len,
            total.ref_len,
            max_ngram_order=order,
        ).score
        / 100
        for order in range(1, _MAX_ORDER + 1)
    }


def _rouge_l(references, answers) -> dict[str, float]:
    scores = []
    for own, answer in zip(references, answers, strict=True):
        common = [common_subsequence(reference, answer) for reference in own]
        precision = max(common) / max(len(answer), 1)
        recall = max(x / max(len(words), 1) for x, words in zip(common, own, strict=True))
        score = 0.0
        if precision and recall:
            score = (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)
        scores.append(score)
    return {"rouge_l": math.fsum(scores) / len(scores)}


def common_subsequence(first: Words, second: Words) -> int:
    """Length of the longest common subsequence, a row of its table at a time in one integer.

    Bit i of `row` is 0 where the table steps up at word i of `first` (Hyyrö 2004).
    """
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    everything = (1 << len(first)) - 1
    row = everything
    for word in second:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & everything
    return len(first) - row.bit_count()


def _meteor_and_spice(references, answers) -> dict[str, float]:
    if not _java_metrics_are_there():
        return {}
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.spice.spice import Spice

    wanted = {i: [" ".join(words) for words in own] for i, own in enumerate(references)}
    given = {i: [" ".join(answer)] for i, answer in enumerate(answers)}
    values = {}
    for name, metric in (("meteor", Meteor), ("spice", Spice)):
        try:
            values[name] = float(metric().compute_score(wanted, given)[0])
        except Exception as error:  # noqa: BLE001  whatever a Java program on this machine does
            _say_once(f"{name} is left out: it did not run ({type(error).__name__}: {error}).")
    return values


def _java_metrics_are_there() -> bool:
    missing = [] if shutil.which("java") else ["java"]
    try:
        import pycocoevalcap  # noqa: F401
    except ImportError:
        missing.append("pycocoevalcap")
    if missing:
        _say_once(
            f"METEOR and SPICE are left out: there is no {' and no '.join(missing)} here (they are "
            "Java programs; `pip install pycocoevalcap` has them)."
        )
    return not missing


@functools.cache
def _say_once(sentence: str) -> None:
    logging.warning(sentence)
