"""Wordings of captions and questions that no text of Scenes has, for tasks after pretraining.

A model that was pretrained on Scenes knows what these texts ask for, but has never read them in
these words. Answers stay as they are.

    there is a dog and two apples    you can see a dog and two apples
    how many apples are there?       what is the number of apples?
"""

import re

CAPTIONS = ("you can see {objects}", "this photo shows {objects}")
"""Templates of captions; `objects` is a plain listing, such as "a dog and two apples"."""

IMAGE_CAPTION = "{objects} in front of {background}"
"""Template of what an image is generated from."""

# The first pattern that fits a question determines its new words.
_QUESTIONS = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"is there (an? .+) in the picture\?", r"does the photo show \1?"),
        (r"are there any (.+) in the picture\?", r"can any \1 be seen?"),
        (r"are there more (.+) than (.+)\?", r"do the \1 outnumber the \2?"),
        (r"how many (.+) are there\?", r"what is the number of \1?"),
        (r"is the (.+) on the left or on the right\?", r"which side has the \1, left or right?"),
        (r"is the (.+) at the top or at the bottom\?", r"which half has the \1, top or bottom?"),
        (r"in which corner is the (.+)\?", r"which corner has the \1?"),
        (
            r"is the (.+) above or below the (.+)\?",
            r"where is the \1 from the \2, above or below?",
        ),
        (
            r"is the (.+) to the left or to the right of the (.+)\?",
            r"where is the \1 from the \2, left or right?",
        ),
        (
            r"is the (.+) (to the left of|to the right of|above|below) the (.+)\?",
            r"can the \1 be seen \2 the \3?",
        ),
        (r"what is in the picture\?", r"which object does the photo show?"),
        (r"what is in the background\?", r"what stands behind everything?"),
        (r"what is the (largest|smallest) object in the picture\?", r"which object is the \1?"),
        (r"what is ((?:to the|above|below) .+)\?", r"which object is \1?"),
    )
)


def reword_question(question: str) -> str:
    """Returns a question of `ofa_jax.scenes.questions` in other words.

    Raises:
      ValueError: no such question is made of scenes.
    """
    for pattern, words in _QUESTIONS:
        if match := pattern.fullmatch(question):
            return match.expand(words)
    raise ValueError(f"Scenes have no question {question!r}: add its new words to rewording.py.")
