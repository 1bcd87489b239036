"""Every instruction, once. `tasks.prompts` is the public name; data workers import this one.

Text goes in with the quotes and spaces as shown: they are part of what the model was trained on.
"""

IMAGE_CAPTIONING = " what does the image describe?"
MATCHING_CAPTION = ' does the image describe " {caption} "?'
MATCHING_ANSWER = ' what is the answer to question " {question} ". is " {answer} "?'
VISUAL_GROUNDING = ' which region does the text " {phrase} " describe?'
# Two spaces in front, as in the original; the four bins follow directly.
GROUNDED_CAPTIONING = "  what does the region describe? region:"
OBJECT_DETECTION = " what are the objects in the image?"
IMAGE_INFILLING = " what is the image in the middle part?"
# The masked text goes between the two parts as ids.
TEXT_INFILLING = (' what is the complete text of "', ' "?')
YES, NO = " yes", " no"

# Downstream (section 6 of the spec). Grounding asks as in pretraining.
DETECTED_OBJECTS = " object: {objects}"
ENTAILMENT = ' can image and text1 " {premise} " imply text2 " {hypothesis} "?'
ENTAILMENT_WITHOUT_PREMISE = ' does the image describe " {hypothesis} "?'
CLASSIFICATION = " what does the image describe?"
TEXT_TO_IMAGE = " what is the complete image? caption: {caption}"
SUMMARIZATION = ' what is the summary of article " {article} "?'
# The fields are those of TFDS's records.
GLUE = {
    "cola": ' is the text " {sentence} " grammatically correct?',
    "sst2": ' is the sentiment of text " {sentence} " positive or negative?',
    "mrpc": ' does text1 " {sentence1} " and text2 " {sentence2} " have the same semantics?',
    "qqp": ' is question " {question1} " and question " {question2} " equivalent?',
    "mnli": ' can text1 " {premise} " imply text2 " {hypothesis} "?',
    "qnli": ' does " {sentence} " contain the answer to question " {question} "?',
    "rte": ' can text1 " {sentence1} " imply text2 " {sentence2} "?',
}
