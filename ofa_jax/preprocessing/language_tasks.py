"""The downstream tasks without images: GLUE and summarization (Wang et al. 2022, section 4).

And two on the corpus of Scenes: the topic of a sentence, and the words that are masked in it.

Functions from a record to an example, as in `downstream`.
"""

import functools
import string
import zlib
from collections.abc import Mapping, Sequence

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
from ofa_jax.tokenizers.id_layout import SPECIAL_SYMBOLS


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


classify_topic: DownstreamTask = functools.partial(classify_sentences, prompt=prompts.TOPIC)
"""`what is the topic of the text " {sentence} "?` -> one of a few words."""

_MASKED_SHARE, _MOST_MASKED, _SHORTEST_MASKED = 0.15, 3, 3


def masked_words(record: Record, rng: np.random.Generator, config: DownstreamConfig) -> Example:
    """Returns `which words are missing in the text " ... <mask> ... "?` -> these words, in order.

    In training the words are drawn anew each time; in evaluation they follow from the text, see
    `fixed_masked_words`.
    """
    words = words_of(record, config)
    chosen = _draw_masked(words, rng) if config.training else fixed_masked_words(record, config)
    before, after = prompts.MASKED_WORDS
    parts: list[str | np.ndarray] = [before]
    mask = np.array([config.vocabulary.mask_id], np.int32)
    parts += [mask if place in chosen else f" {word}" for place, word in enumerate(words)]
    target = "".join(f" {words[place]}" for place in chosen)
    return make_example(config.vocabulary, [*parts, after], target)


def words_of(record: Record, config: DownstreamConfig) -> list[str]:
    """Returns the first words of a record's text, in lower case."""
    words = fields.get_text(record, "text").lower().split()[: config.max_sentence_words]
    if not any(map(_is_maskable, words)):
        raise fields.record_error(record, "it has no word that can be masked", fields.EMPTY)
    return words


def fixed_masked_words(record: Record, config: DownstreamConfig) -> list[int]:
    """Returns the places of the words that an evaluation asks for; the same in every run."""
    words = words_of(record, config)
    return _draw_masked(words, np.random.default_rng(zlib.crc32(" ".join(words).encode())))


def _draw_masked(words: Sequence[str], rng: np.random.Generator) -> list[int]:
    """Samples some 15 % of the words, at most three, none of them short or with punctuation."""
    places = [place for place, word in enumerate(words) if _is_maskable(word)]
    count = min(len(places), max(1, min(_MOST_MASKED, round(_MASKED_SHARE * len(words)))))
    return sorted(rng.permutation(places)[:count].tolist())


def _is_maskable(word: str) -> bool:
    return word.isalpha() and len(word) >= _SHORTEST_MASKED


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
