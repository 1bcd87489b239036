"""Scenes: images composed of real pictograms and photographs, with exact boxes and true texts.

    nouns       what can be seen, with its English grammar: articles and plurals
    sprites     the pictograms (two styles) and the photographs, from installed packages
    composer    a scene: where which object stands, and its image
    relations   what is exactly true of a scene, and what is clearly false
    language    captions, hard negatives, questions with answers, referring phrases
    corpus      plain sentences from a public-domain text

Every scene is a pure function of (options, split, index). Only numpy and Pillow, no TensorFlow.
`tools/build_scenes.py` writes scenes to disk; `ofa_jax.data.sources.scenes.Scenes` reads them.
"""
