"""Preprocessing: from records to examples, in numpy, Pillow and OpenCV alone.

    records             a record, its fields, InvalidRecordError
    examples            an example, and how one is put together
    objectives          the eight pretraining objectives
    objective_config    their sizes and resources
    downstream          captioning, VQA, grounding, entailment, text-to-image generation
    classification      image classification and its augmentation
    language_tasks      GLUE and summarization
    prompts             all instructions
    wordings            several wordings of an instruction
    instructions        instructions as users write them
    record_fields       checked access to a record's fields: texts and the image
    record_questions    checked access to its questions and answers
    record_regions      checked access to its boxes and image codes
    image_files         decoding of images, within limits
    images, boxes       image transforms, and those of boxes
    pair_images         the images of pairs and regions
    resampling          resizing by the compiled module
    image_kernels       the compiled module
    image_sharing       one image for two examples of a record
    randaugment         RandAugment
    masking             the span masks of text infilling
    negatives           false captions and answers for matching
    text                cleaning of captions and questions

Imports neither jax nor TensorFlow nor seqio, so that data workers start quickly.
"""

__all__ = [
    "boxes",
    "classification",
    "downstream",
    "examples",
    "image_files",
    "image_kernels",
    "image_sharing",
    "images",
    "instructions",
    "language_tasks",
    "masking",
    "negatives",
    "objective_config",
    "objectives",
    "pair_images",
    "prompts",
    "randaugment",
    "record_fields",
    "record_questions",
    "record_regions",
    "records",
    "resampling",
    "text",
    "wordings",
]
