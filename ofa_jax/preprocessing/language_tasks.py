"""The downstream tasks of text alone: GLUE and summaries (section 6 of the spec).

Plain functions as in `downstream`.
"""

from typing import Any

import numpy as np

from ofa_jax.preprocessing import prompts
from ofa_jax.preprocessing.downstream import DownstreamConfig, prompted, require
from ofa_jax.preprocessing.objectives import make_example
from ofa_jax.preprocessing.records import InvalidRecordError, Record
from ofa_jax.preprocessing.text import clean_caption
from ofa_jax.tokenizers.vocabulary import SPECIAL_SYMBOLS


def glue_sentences(record: Record, config: DownstreamConfig, instruction: str) -> dict[str, Any]:
    """A question about one or two sentences -> one word.

    As in the original an answer of one token, as all are in the official vocabulary, has no eos:
    what follows it is not learned. Answers are searched in a trie, which knows where they end.

    Args:
      record: has the fields that the instruction names, and a label.
      config: see there.
      instruction: one of `prompts.GLUE`.
    """
    words = {}
    for field in _fields(instruction):
        words[field] = " ".join(require(record, field).lower().split()[: config.max_sentence_words])
    label = require(record, "label", config)
    example = make_example(
        config.vocabulary, instruction.format(**words), f" {label}" if label else ""
    )
    if len(example["targets"]) == 2:
        example["targets"] = example["targets"][:1]
    return prompted(example, config)


def _fields(instruction: str) -> list[str]:
    """Names in braces."""
    return [part.split("}")[0] for part in instruction.split("{")[1:]]


def cola(record: Record, rng: np.random.Generator, config: DownstreamConfig) -> dict[str, Any]:
    """`is the text " {sentence} " grammatically correct?` -> yes or no."""
    return glue_sentences(record, config, prompts.GLUE["cola"])


def sst2(record: Record, rng: np.random.Generator, config: DownstreamConfig) -> dict[str, Any]:
    """`is the sentiment of text " {sentence} " positive or negative?`"""
    return glue_sentences(record, config, prompts.GLUE["sst2"])


def mrpc(record: Record, rng: np.random.Generator, config: DownstreamConfig) -> dict[str, Any]:
    """`does text1 " {sentence1} " and text2 " {sentence2} " have the same semantics?`"""
    return glue_sentences(record, config, prompts.GLUE["mrpc"])


def qqp(record: Record, rng: np.random.Generator, config: DownstreamConfig) -> dict[str, Any]:
    """`is question " {question1} " and question " {question2} " equivalent?`"""
    return glue_sentences(record, config, prompts.GLUE["qqp"])


def mnli(record: Record, rng: np.random.Generator, config: DownstreamConfig) -> dict[str, Any]:
    """`can text1 " {premise} " imply text2 " {hypothesis} "?` -> yes, maybe or no."""
    return glue_sentences(record, config, prompts.GLUE["mnli"])


def qnli(record: Record, rng: np.random.Generator, config: DownstreamConfig) -> dict[str, Any]:
    """`does " {sentence} " contain the answer to question " {question} "?`"""
    return glue_sentences(record, config, prompts.GLUE["qnli"])


def rte(record: Record, rng: np.random.Generator, config: DownstreamConfig) -> dict[str, Any]:
    """`can text1 " {sentence1} " imply text2 " {sentence2} "?` -> yes or no."""
    return glue_sentences(record, config, prompts.GLUE["rte"])


GLUE = {function.__name__: function for function in (cola, sst2, mrpc, qqp, mnli, qnli, rte)}
"""Name -> task."""


def summarization(
    record: Record, rng: np.random.Generator, config: DownstreamConfig
) -> dict[str, Any]:
    """`what is the summary of article " {article} "?` -> its summary.

    In training the decoder reads some tokens of the summary replaced by random ones
    (`target_noise`), and still has to write the right ones.
    """
    vocabulary = config.vocabulary
    article = clean_caption(require(record, "text"), config.max_article_tokens)
    if not article:
        raise InvalidRecordError(f"record {record.get('id', '?')}: its text is empty")
    summary = clean_caption(require(record, "summary", config) or "", config.max_summary_words)
    instruction = prompts.SUMMARIZATION.format(article=article.replace("<unk>", "unk"))
    ids = vocabulary.encode(instruction, max_length=config.max_article_tokens)
    answer = f" {summary.replace('<unk>', 'unk')}" if summary else ""
    example = make_example(vocabulary, [ids], answer)
    if config.training and config.target_noise:
        example["noisy_targets"] = with_noise(example["targets"], rng, config)
    return example


def with_noise(
    targets: np.ndarray, rng: np.random.Generator, config: DownstreamConfig
) -> np.ndarray:
    """Targets in which each token, but for the eos, is a random text token with `target_noise`."""
    vocabulary = config.vocabulary
    noisy = targets.copy()
    replaced = rng.random(len(targets)) < config.target_noise
    replaced[-1] = False
    # As in the original, from the first text token up to <mask>.
    first, last = len(SPECIAL_SYMBOLS), vocabulary.mask_id
    noisy[replaced] = rng.integers(first, last + 1, replaced.sum())
    return noisy
