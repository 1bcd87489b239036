"""All instructions. `tasks.prompts` re-exports them; data workers import this module.

Texts are inserted with the quotes and spaces as written: they are part of what a model was trained
on. `wordings` chooses among several wordings of an instruction.
"""

IMAGE_CAPTIONING = " what does the image describe?"
MATCHING_CAPTION = ' does the image describe " {caption} "?'
MATCHING_ANSWER = ' what is the answer to question " {question} ". is " {answer} "?'
VISUAL_GROUNDING = ' which region does the text " {phrase} " describe?'
# Two leading spaces, as in the reference implementation; the four location bins follow directly.
GROUNDED_CAPTIONING = "  what does the region describe? region:"
OBJECT_DETECTION = " what are the objects in the image?"
IMAGE_INFILLING = " what is the image in the middle part?"
# The ids of the masked text go between the two parts.
TEXT_INFILLING = (' what is the complete text of "', ' "?')
YES, NO = " yes", " no"

# Downstream tasks (Wang et al. 2022, appendix A). Grounding uses the pretraining instruction.
DETECTED_OBJECTS = " object: {objects}"
ENTAILMENT = ' can image and text1 " {premise} " imply text2 " {hypothesis} "?'
ENTAILMENT_WITHOUT_PREMISE = ' does the image describe " {hypothesis} "?'
CLASSIFICATION = " what does the image describe?"
TEXT_TO_IMAGE = " what is the complete image? caption: {caption}"
# Of text-to-image generation without its caption: what guidance compares with.
UNCONDITIONAL_IMAGE = " what is the complete image? caption:"
SUMMARIZATION = ' what is the summary of article " {article} "?'
# GLUE task -> instruction; the names in braces are those of TFDS's fields.
GLUE_PROMPTS = {
    "cola": ' is the text " {sentence} " grammatically correct?',
    "sst2": ' is the sentiment of text " {sentence} " positive or negative?',
    "mrpc": ' does text1 " {sentence1} " and text2 " {sentence2} " have the same semantics?',
    "qqp": ' is question " {question1} " and question " {question2} " equivalent?',
    "mnli": ' can text1 " {premise} " imply text2 " {hypothesis} "?',
    "qnli": ' does " {sentence} " contain the answer to question " {question} "?',
    "rte": ' can text1 " {sentence1} " imply text2 " {sentence2} "?',
}
# Language tasks on the corpus of Scenes, which are none of the paper's.
TOPIC = ' what is the topic of the text " {sentence} "?'
# The text goes between the two parts, with a mask in place of each word that is asked for.
MASKED_WORDS = (' which words are missing in the text "', ' "?')

INSTRUCTIONS = {
    "image_captioning": IMAGE_CAPTIONING,
    "visual_question_answering": " {question}",
    "matching_caption": MATCHING_CAPTION,
    "matching_answer": MATCHING_ANSWER,
    "visual_grounding": VISUAL_GROUNDING,
    "grounded_captioning": GROUNDED_CAPTIONING + "{region}",
    "object_detection": OBJECT_DETECTION,
    "image_infilling": IMAGE_INFILLING,
    "text_infilling": "{text}".join(TEXT_INFILLING),
}
"""The published instruction of each pretraining objective; image-text matching has two."""

TRAINED_WORDINGS = {
    "image_captioning": (
        " describe the image.",
        " give a caption for the image.",
        " what can be seen in the image?",
    ),
    "visual_question_answering": (
        " answer the question: {question}",
        " question: {question} answer:",
        " {question} answer in a word.",
    ),
    "matching_caption": (
        ' is " {caption} " true of the image?',
        ' does the caption " {caption} " match the image?',
        ' the image shows " {caption} ". is that right?',
    ),
    "matching_answer": (
        ' is " {answer} " the answer to question " {question} "?',
        ' question: " {question} ". is the answer " {answer} "?',
        ' to " {question} " one answers " {answer} ". is that right?',
    ),
    "visual_grounding": (
        ' where is " {phrase} "?',
        ' find the region of " {phrase} ".',
        ' what are the bounds of " {phrase} "?',
    ),
    "grounded_captioning": (
        " describe the region. region:{region}",
        " what is shown in the region? region:{region}",
        " give a caption for the region. region:{region}",
    ),
    "object_detection": (
        " list all objects and their regions.",
        " which objects are where in the image?",
        " detect the objects.",
    ),
    "image_infilling": (
        " fill in the middle of the image.",
        " what is missing in the middle of the image?",
        " what does the middle part show?",
    ),
    "text_infilling": (
        ' fill in the gaps of "{text} ".',
        ' what does the text "{text} " say without gaps?',
        ' complete the text: "{text} ".',
    ),
}
"""Other wordings of each instruction, for training with several."""

UNSEEN_WORDINGS = {
    "image_captioning": (" what does the image show?", " write a short text about the image."),
    "visual_question_answering": (
        " look at the image. {question}",
        " please tell me: {question}",
    ),
    "matching_caption": (
        ' is the image described by " {caption} "?',
        ' can one say " {caption} " about the image?',
    ),
    "matching_answer": (
        ' somebody asks " {question} ". is " {answer} " correct?',
        ' would " {answer} " be a correct reply to " {question} "?',
    ),
    "visual_grounding": (
        ' which part of the image shows " {phrase} "?',
        ' locate " {phrase} " in the image.',
    ),
    "grounded_captioning": (
        " what can be seen in the region? region:{region}",
        " write a short text about the region. region:{region}",
    ),
    "object_detection": (
        " name every object and where it is.",
        " what things does the image contain?",
    ),
    "image_infilling": (
        " complete the centre of the image.",
        " which codes belong in the middle of the image?",
    ),
    "text_infilling": (
        ' restore the text "{text} ".',
        ' which words are hidden in "{text} "?',
    ),
}
"""Wordings that no training has, for evaluation alone."""
