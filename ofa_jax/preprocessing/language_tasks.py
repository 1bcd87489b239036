"""The downstream tasks without images: GLUE and summarization (Wang et al. 2022, section 4).

Functions from a record to an example, as in `downstream`.
"""

import functools
import string
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int32

from ofa_jax.preprocessing import prompts
from ofa_jax.preprocessing import record_fields as fields
from ofa_jax.preprocessing.downstream import (
    DownstreamConfig,
    DownstreamTask,
    add_decoder_prompt,
    get_target_text,
)
from ofa_jax.preprocessing.examples import Example, make_example
from ofa_jax.preprocessing.records import Record
from ofa_jax.preprocessing.text import clean_caption, has_no_words
from ofa_jax.tokenizers.vocabulary import SPECIAL_SYMBOLS


def classify_sentences(
    record: Record, rng: np.random.Generator, config: DownstreamConfig, *, prompt: str
) -> Example:
    """Returns a question about one or two sentences -> one word.

    As in the reference implementation, a target of one token, which all are in the official
    vocabulary, has no eos: the model does not learn what follows it. Decoding is constrained to a
    trie of the labels, which determines where a label ends.

    Args:
      record: has the fields that the prompt names, and a label.
      rng: not used.
      config: see there.
      prompt: one of `prompts.GLUE_PROMPTS`.
    """
    del rng
    names = [name for _, name, _, _ in string.Formatter().parse(prompt) if name]
    words = {name: fields.get_text(record, name).lower().split() for name in names}
    sentences = {name: " ".join(words[name][: config.max_sentence_words]) for name in names}
    label = get_target_text(record, "label", config)
    example = make_example(
        config.vocabulary, prompt.format(**sentences), f" {label}" if label else ""
    )
    if len(example["targets"]) == 2:
        example["targets"] = example["targets"][:1]
    return add_decoder_prompt(example, config)


GLUE_TASKS: Mapping[str, DownstreamTask] = {
    name: functools.partial(classify_sentences, prompt=prompt)
    for name, prompt in prompts.GLUE_PROMPTS.items()
}
"""The name of each GLUE task -> its function."""


def summarization(record: Record, rng: np.random.Generator, config: DownstreamConfig) -> Example:
    """Returns `what is the summary of article " {article} "?` -> its summary.

    In training the decoder reads random tokens in place of some of the summary's tokens
    (`target_noise`); its targets stay correct.
    """
    vocabulary = config.vocabulary
    article = fields.get_cleaned(
        record, "text", functools.partial(clean_caption, max_words=config.max_article_tokens)
    )
    summary = clean_caption(get_target_text(record, "summary", config), config.max_summary_words)
    if config.training and has_no_words(summary):
        raise fields.record_error(record, "its summary is empty after cleaning", fields.EMPTY)
    instruction = prompts.SUMMARIZATION.format(article=article.replace("<unk>", "unk"))
    ids = vocabulary.encode(instruction, max_length=config.max_article_tokens)
    target = f" {summary.replace('<unk>', 'unk')}" if summary else ""
    example = make_example(vocabulary, [ids], target)
    if config.training and config.target_noise:
        example["noisy_targets"] = add_noise(example["targets"], rng, config)
    return example


def add_noise(
    targets: Int32[np.ndarray, " length"], rng: np.random.Generator, config: DownstreamConfig
) -> Int32[np.ndarray, " length"]:
    """Replaces each token except eos, with probability `target_noise`, by a random text token."""
    vocabulary = config.vocabulary
    noisy = targets.copy()
    replaced = rng.random(len(targets)) < config.target_noise
    replaced[-1] = False
    # From the first text token up to <mask>, as in the reference implementation.
    first, last = len(SPECIAL_SYMBOLS), vocabulary.mask_id
    noisy[replaced] = rng.integers(first, last + 1, replaced.sum())
    return noisy
