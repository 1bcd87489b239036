"""Scenes: images composed of pictograms and photographs, with exact boxes and correct texts.

    nouns       the nouns that objects are named by, with articles and plurals
    sprites     the pictograms (two styles) and the photographs, from installed packages
    composer    a scene: its objects, their positions, its background and its image
    relations   which spatial relations are clearly true of a scene, and which clearly false
    captions    true captions and hard negatives
    questions   questions with their answers
    phrases     referring phrases
    region_questions  questions about a region, which no training example asks
    records     all of it as a record
    rewording   captions and questions in words that those above do not have
    downstream_records   scenes for tasks after pretraining, with new nouns and other words
    corpus      sentences from a public-domain text

Every scene is a pure function of (options, split, index). Uses only numpy and Pillow, no
TensorFlow. `tools/build_scenes.py` writes scenes to disk; `ofa_jax.data.sources.scenes.Scenes`
reads them.
"""

__all__ = [
    "captions",
    "composer",
    "corpus",
    "downstream_records",
    "nouns",
    "phrases",
    "questions",
    "records",
    "region_questions",
    "relations",
    "rewording",
    "sprites",
]
