"""Metrics: plain functions `metric(references, answers) -> values by name`, see `judging.Metric`.

    captions        cider_d, bleu, rouge_l, meteor_and_spice, caption_metrics    against list[str]
    nouns           noun_f1                          {"captions": list[str], "nouns": list[str]}
    vqa             vqa_accuracy                     {"answers": list[str], ...}
    boxes           accuracy_at_iou, detection       [4]; {"boxes": [K, 4], "labels": list[str]}
    classification  accuracy, matthews_correlation, f1, accuracy_and_f1          against str
    summarization   rouge                            against str
    exact           exact_match, token_accuracy      against str; int [n]
    images        psnr                             uint8 [H, W, 3]

All are shares between 0 and 1 (correlations between -1 and 1, CIDEr-D between 0 and 10, PSNR in
decibels): papers print most of them times 100. An answer that could not be read is None, and wrong.
"""
