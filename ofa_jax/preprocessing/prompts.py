"""All instructions. `tasks.prompts` re-exports them; data workers import this module.

Texts are inserted with the quotes and spaces as written: they are part of what a model was trained
on.
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
