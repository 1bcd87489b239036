"""A trained model at work: asked in Python (`predictor`), or over many inputs (`job`).

interface     what stands between a model and people: vocabulary, image tokenizer, image sizes
loading       a checkpoint, ours or the original's, with its interface
requests      an image and an instruction to a model's features, and what was written back
sources       where many inputs come from: JSON lines, TSV, folders of images
shards        answers on disk: files that are complete or not there
"""
