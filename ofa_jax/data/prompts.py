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
