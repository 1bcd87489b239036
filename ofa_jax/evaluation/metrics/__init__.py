"""Metrics: functions `metric(references, predictions) -> {name: value}`, see `eval_spec.Metric`.

    captions        cider_d, bleu, rouge_l, meteor_and_spice, caption_metrics    against list[str]
    nouns           noun_f1                          {"captions": list[str], "nouns": list[str]}
    vqa             vqa_accuracy                     {"answers": list[str], ...}
    boxes           accuracy_at_iou, detection       [4]; {"boxes": [K, 4], "labels": list[str]}
    classification  accuracy, matthews_correlation, f1, accuracy_and_f1          against str
    summarization   rouge                            against str
    exact           exact_match, one_of_several, token_accuracy    str; list[str]; int [n]
    spans           exact_spans                      against str, with the masked texts
    images          psnr, ssim                       uint8 [H, W, 3]
    generated_images  fid, inception_score, clip_score            of features, not predictions

All values are shares between 0 and 1 (correlations between -1 and 1, CIDEr-D between 0 and 10, PSNR
in decibels); papers print most of them times 100. A prediction that could not be parsed is None and
counts as wrong.
"""

__all__ = [
    "boxes",
    "captions",
    "classification",
    "exact",
    "generated_images",
    "images",
    "nouns",
    "spans",
    "summarization",
    "vqa",
]
