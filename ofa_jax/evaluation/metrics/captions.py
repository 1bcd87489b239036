"""Caption metrics: CIDEr-D, BLEU, ROUGE-L, METEOR and SPICE.

The first three need neither Java nor downloads and agree with the official evaluation of COCO
captions (pycocoevalcap). References are list[list[str]]: all captions of every image.
"""

import functools
import importlib
import math
import shutil
from collections.abc import Sequence
from typing import Any

from absl import logging
from sacrebleu.metrics import BLEU

from ofa_jax.evaluation.metrics import inputs
from ofa_jax.evaluation.metrics.cider import CiderD, Words
from ofa_jax.evaluation.metrics.words import tokenize

References = Sequence[Sequence[str]]
Tokenised = tuple[list[list[Words]], list[Words]]
"""Words of all references and of all predictions."""

_MAX_ORDER = 4
_BETA = 1.2
"""The weight of recall over precision in COCO's ROUGE-L."""


@inputs.of_corpus
@inputs.accepts(inputs.texts)
def cider_d(
    references: References, predictions: Sequence[str | None], scorer: CiderD | None = None
) -> dict[str, float]:
    """Computes "cider_d", between 0 and 10: the mean over the images.

    Args:
      references: the captions of every image.
      predictions: one caption per image.
      scorer: holds the document frequencies of another corpus (over the words of `tokenize`);
        those of these references when None, as in papers. With a single image all frequencies are
        equal, and the score is 0.
    """
    return _cider_d(*_tokenise("cider_d", references, predictions), scorer)


@inputs.accepts(inputs.texts)
def bleu(references: References, predictions: Sequence[str | None]) -> dict[str, float]:
    """Computes "bleu_1" to "bleu_4": BLEU of the corpus (Papineni et al. 2002), by sacrebleu.

    Counts, closest reference length and brevity penalty are those of COCO's evaluation. That adds
    1e-9 or less to its counts, so results differ by less than 1e-8, except where no n-gram of an
    order is correct: that is 0 here and up to 1e-2 there.
    """
    return _bleu(*_tokenise("bleu", references, predictions))


@inputs.accepts(inputs.texts)
def rouge_l(references: References, predictions: Sequence[str | None]) -> dict[str, float]:
    """Computes COCO's "rouge_l"; rouge-score has neither several references nor beta.

    The length of the longest common subsequence is divided by the caption's length (precision) and
    by the reference's (recall); the best of each over the references enter an F-measure with
    beta = 1.2.
    """
    return _rouge_l(*_tokenise("rouge_l", references, predictions))


@inputs.of_corpus
@inputs.accepts(inputs.texts)
def meteor_and_spice(references: References, predictions: Sequence[str | None]) -> dict[str, float]:
    """Computes "meteor" and "spice" by the Java programs in pycocoevalcap.

    Both are optional and need `pip install pycocoevalcap` and Java. SPICE also downloads models
    when it is first used. A metric that does not run is left out, with one warning.
    """
    return _meteor_and_spice(*_tokenise("meteor_and_spice", references, predictions))


@inputs.of_corpus
@inputs.accepts(inputs.texts)
def caption_metrics(references: References, predictions: Sequence[str | None]) -> dict[str, float]:
    """Computes all caption metrics; CIDEr-D comes first."""
    words = _tokenise("caption_metrics", references, predictions)
    values: dict[str, float] = {}
    for own_metric in (_cider_d, _bleu, _rouge_l, _meteor_and_spice):
        values |= own_metric(*words)
    return values


METRICS = (cider_d, bleu, rouge_l, meteor_and_spice)
"""All metrics of captions one by one, CIDEr-D first: one that fails leaves the others alone."""


def _tokenise(metric: str, references: References, predictions: Sequence[str | None]) -> Tokenised:
    """Checks references and predictions and splits them into words."""
    inputs.check_pairs(metric, references, predictions)
    for index, captions in enumerate(references):
        if isinstance(captions, str):
            raise ValueError(
                f"{metric}: the references of example {index} are the string {captions!r}; give a "
                "list of captions."
            )
    inputs.check_references(metric, references)
    return (
        [[tokenize(caption) for caption in captions] for captions in references],
        [tokenize(inputs.text(prediction)) for prediction in predictions],
    )


def _cider_d(
    references: list[list[Words]], predictions: list[Words], scorer: CiderD | None = None
) -> dict[str, float]:
    """Computes CIDEr-D of tokenised captions."""
    scorer = scorer or CiderD.of_references(references)
    scores = [
        scorer.score([prediction], captions)[0]
        for captions, prediction in zip(references, predictions, strict=True)
    ]
    return {"cider_d": math.fsum(scores) / len(scores)}


def _bleu(references: list[list[Words]], predictions: list[Words]) -> dict[str, float]:
    """Computes BLEU of tokenised captions."""
    # sacrebleu takes the first references of all images, then the second ones ..., and None where
    # an image has no more.
    transposed: list[list[Any]] = [
        [" ".join(captions[index]) if index < len(captions) else None for captions in references]
        for index in range(max(map(len, references)))
    ]
    counter = BLEU(tokenize="none", smooth_method="none", max_ngram_order=_MAX_ORDER, force=True)
    total = counter.corpus_score([" ".join(words) for words in predictions], transposed)
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


def _rouge_l(references: list[list[Words]], predictions: list[Words]) -> dict[str, float]:
    """Computes ROUGE-L of tokenised captions."""
    scores = []
    for captions, prediction in zip(references, predictions, strict=True):
        common = [common_subsequence(caption, prediction) for caption in captions]
        precision = max(common) / max(len(prediction), 1)
        recall = max(x / max(len(words), 1) for x, words in zip(common, captions, strict=True))
        score = 0.0
        if precision and recall:
            score = (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)
        scores.append(score)
    return {"rouge_l": math.fsum(scores) / len(scores)}


def common_subsequence(first: Words, second: Words) -> int:
    """Returns the length of the longest common subsequence.

    Each row of the dynamic programme is one integer: bit i of `row` is 0 where the table increases
    at word i of `first` (Hyyrö 2004).
    """
    positions: dict[str, int] = {}
    for index, word in enumerate(first):
        positions[word] = positions.get(word, 0) | 1 << index
    all_bits = (1 << len(first)) - 1
    row = all_bits
    for word in second:
        matches = row & positions.get(word, 0)
        row = (row + matches | row - matches) & all_bits
    return len(first) - row.bit_count()


def _meteor_and_spice(references: list[list[Words]], predictions: list[Words]) -> dict[str, float]:
    """Runs the Java programs on tokenised captions."""
    if not _has_java_metrics():
        return {}
    true = {i: [" ".join(words) for words in captions] for i, captions in enumerate(references)}
    predicted = {i: [" ".join(words)] for i, words in enumerate(predictions)}
    values = {}
    for name in ("meteor", "spice"):
        try:
            module = importlib.import_module(f"pycocoevalcap.{name}.{name}")
            metric = getattr(module, name.capitalize())()
            values[name] = float(metric.compute_score(true, predicted)[0])
        except (Exception, SystemExit) as error:  # noqa: BLE001  Java can fail in any way
            _warn_once(f"{name} is left out because it failed ({type(error).__name__}: {error}).")
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _has_java_metrics() -> bool:
    """Returns whether Java and pycocoevalcap are installed; warns once if not."""
    missing = [] if shutil.which("java") else ["java"]
    try:
        import pycocoevalcap  # noqa: F401
    except ImportError:
        missing.append("pycocoevalcap")
    if missing:
        _warn_once(
            f"METEOR and SPICE are left out: there is no {' and no '.join(missing)} (they are "
            "Java programs; install them with `pip install pycocoevalcap`)."
        )
    return not missing


@functools.cache
def _warn_once(message: str) -> None:
    """Logs a warning the first time it is called with it."""
    logging.warning(message)
