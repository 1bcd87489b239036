"""Every downstream task over official files: through the loader and plain seqio, and evaluated."""

import contextvars
import json

import downstream_files
import numpy as np
import pytest
import seqio
import seqio_evaluation

import tasks.captioning
import tasks.classification
import tasks.entailment
import tasks.glue
import tasks.grounding
import tasks.image_generation
import tasks.summarization
import tasks.vqa  # noqa: F401
from ofa_jax.data import seqio_bridge
from ofa_jax.data.downstream_settings import (
    DATA,
    DOWNSTREAM,
    GLUE,
    DownstreamSettings,
    read_choices,
)
from ofa_jax.data.seqio_vocabulary import TaskVocabulary
from ofa_jax.data.task_settings import default_settings
from ofa_jax.evaluation import eval_spec, postprocess
from ofa_jax.evaluation.eval_example import read_references
from ofa_jax.evaluation.scoring import compute_metrics
from ofa_jax.preprocessing.records import InvalidRecordError
from ofa_jax.tokenizers.vocabulary import OFAVocabulary

# Task -> (data, stem of its files).
TASKS = {
    "coco_captioning": ("caption", "caption"),
    **{name: ("vqa", "vqa") for name in ("vqa", "vqa_trie", "vqa_free")},
    "refcoco": ("refcoco", "refcoco"),
    "refcoco_plus": ("refcoco_plus", "refcocoplus"),
    "refcocog": ("refcocog", "refcocog"),
    "snli_ve": ("snli_ve", "snli_ve"),
    "snli_ve_without_premise": ("snli_ve", "snli_ve"),
    "imagenet": ("imagenet", "imagenet_1k"),
    "imagenet_all": ("imagenet", "imagenet_1k"),
    "text_to_image": ("text_to_image", "coco_vqgan"),
    "gigaword": ("gigaword", "gigaword"),
    **{f"glue_{name}": (name, name) for name in GLUE},
}
CAPTIONS = ["A dog.", "the dog on it"]
VQA = {"answers": ["cup", "two cups"], "confidences": [float(np.float32(0.3)), 1.0]}
# Task -> the first reference, the correct prediction, and the main value that it gets.
RIGHT = {
    "coco_captioning": (CAPTIONS, "a dog", None),
    **{name: (VQA, "two cups", ("accuracy", 1.0)) for name in ("vqa", "vqa_trie", "vqa_free")},
    **{
        name: (list(downstream_files.BOX), np.array(downstream_files.BOX), ("acc@0.5", 1.0))
        for name in ("refcoco", "refcoco_plus", "refcocog")
    },
    "snli_ve": ("yes", "yes", ("accuracy", 1.0)),
    "snli_ve_without_premise": ("yes", "yes", ("accuracy", 1.0)),
    "imagenet": ("great white shark", "great white shark", ("accuracy", 1.0)),
    "imagenet_all": ("great white shark", "great white shark", ("accuracy", 1.0)),
    "text_to_image": ("a  bench by the sea", np.arange(1024), None),
    "gigaword": ("<unk> up ## points today", "unk up ## points today", ("rouge1", 1.0)),
    "glue_cola": ("yes", "yes", ("matthews_correlation", None)),
    "glue_sst2": ("negative", "negative", ("accuracy", 1.0)),
    "glue_mrpc": ("no", "no", ("f1", None)),
    "glue_qqp": ("yes", "yes", ("f1", 1.0)),
    "glue_mnli": ("maybe", "maybe", ("accuracy", 1.0)),
    "glue_qnli": ("yes", "yes", ("accuracy", 1.0)),
    "glue_rte": ("no", "no", ("accuracy", 1.0)),
}
ANSWERS = {
    **{name: [" two cups", " cup", " two"] for name in ("vqa", "vqa_trie")},
    **{
        name: [" yes", " maybe", " no"]
        for name in ("snli_ve", "snli_ve_without_premise", "glue_mnli")
    },
    **{name: [" tench", " great white shark"] for name in ("imagenet", "imagenet_all")},
    **{f"glue_{name}": [" yes", " no"] for name in ("cola", "mrpc", "qqp", "qnli", "rte")},
    "glue_sst2": [" positive", " negative"],
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory, shared_golden):
    folder = downstream_files.write(tmp_path_factory.mktemp("dataset"))
    settings = DownstreamSettings(
        OFAVocabulary.from_ofa_directory(shared_golden / "bpe"),
        files={
            data: {"train": f"{stem}_train.tsv", "validation": f"{stem}_val.tsv"}
            for data, stem in TASKS.values()
        },
        data_dir=str(folder),
        vqa_answers="trainval_ans2label.json",
        class_names="class2label_new.json",
        options=dict(image_size=32, grounding_image_size=64, max_image_size=64),
    )
    with default_settings(settings):
        yield settings


def opened(name, split):
    (task,) = seqio_bridge.weighted_tasks(name, split)
    return task


OUTPUT_FEATURES = seqio_bridge.output_features(TaskVocabulary(DOWNSTREAM))


def test_all_downstream_tasks_are_covered():
    names = {
        name
        for name in seqio.TaskRegistry.names()
        if seqio.TaskRegistry.get(name).output_features == OUTPUT_FEATURES
    }
    assert names == set(TASKS) == set(RIGHT)
    assert {data for data, _ in TASKS.values()} == set(DATA)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_seqio_and_the_loader_give_the_same_example(settings, name, split):
    task = opened(name, split)
    ours = task.preprocess(task.records[0], np.random.default_rng(0))
    dataset = seqio.get_mixture_or_task(name).get_dataset(
        sequence_length=None, split=split, shuffle=False, seed=1, num_epochs=1
    )
    theirs = list(dataset.as_numpy_iterator())
    assert len(theirs) == len(task.records)
    drawn = {("gigaword", "noisy_targets"), ("imagenet", "image"), ("imagenet_all", "image")}
    if name == "coco_captioning" and split == "validation":
        drawn.add((name, "targets"))  # one of two captions
    for feature in seqio_bridge.EXAMPLE_SIGNATURE:
        if (
            feature in ours
            and not (split == "train" and (name, feature) in drawn)
            and (name, feature) != ("coco_captioning", "targets")
        ):
            np.testing.assert_array_equal(ours[feature], theirs[0][feature], err_msg=feature)


# Of text_to_image the caption is the input.
TARGETS = ("answers", "answer_confidences", "label", "phrase_boxes", "codes", "summary")
REFERENCES = ("reference_answers", "reference_confidences")


@pytest.mark.parametrize("name", TASKS)
def test_a_record_without_its_target_is_predicted_but_not_scored_or_trained_on(settings, name):
    fields = {*TARGETS, *REFERENCES, *(("captions",) if name == "coco_captioning" else ())}
    whole = opened(name, "validation").records[0]
    record = {field: value for field, value in whole.items() if field not in fields}
    assert record.keys() < whole.keys()
    evaluated, trained = (opened(name, split).preprocess for split in ("validation", "train"))
    example, full = (evaluated(own, np.random.default_rng(0)) for own in (record, whole))
    np.testing.assert_array_equal(example["inputs"], full["inputs"])
    with pytest.raises(InvalidRecordError):
        trained(record, np.random.default_rng(0))
    spec = eval_spec.find(name)
    references = read_references(spec.references, record)
    prediction = postprocess.to_json(spec.kind, np.array(RIGHT[name][1]))
    line = {"references": references, "prediction": prediction}
    scores = compute_metrics(spec, [line] * 2)
    assert scores.scored == 0 and not scores.failed and not scores.metrics
    assert scores.unscored_reason is not None


@pytest.mark.parametrize("name", TASKS)
def test_the_correct_target_gets_the_full_score(settings, name):
    described = eval_spec.find(name)
    assert described.task == name
    records = opened(name, "validation").records
    references = [described.references(records[k]) for k in range(len(records))]
    expected, prediction, value = RIGHT[name]
    if isinstance(expected, list) and isinstance(expected[0], float):
        np.testing.assert_allclose(references[0], expected, rtol=1e-6)
    elif name != "coco_captioning":
        assert references[0] == expected
    json.dumps(references)
    if value is not None:
        scores = {}
        for metric in described.metrics:
            scores |= metric(references[:1], [prediction])
        key, right = value
        assert key in scores, scores
        if right is not None:
            assert scores[key] == right


@pytest.mark.parametrize("name", TASKS)
def test_seqio_evaluator_computes_the_same_metrics(settings, name):
    theirs, ours, _ = seqio_evaluation.compare(name, settings)
    assert theirs == ours
    assert ours or name == "text_to_image"


def test_captions_are_scored_against_all_references_of_an_image(settings):
    described = eval_spec.find("coco_captioning")
    references = [["a dog on a sofa", "the dog"], ["two birds"], ["a red bus"]]
    right, wrong = (
        described.metrics[0](references, answers)["cider_d"]
        for answers in (["a dog on a sofa", "two birds", "a red bus"], ["x", "y", "z"])
    )
    assert right > 1 > wrong == 0
    assert described.main_metric == "cider_d"


@pytest.mark.parametrize("name", TASKS)
def test_candidates_are_encoded_as_in_training(settings, name):
    described = eval_spec.find(name)
    if name not in ANSWERS:
        assert described.candidates is None
        return
    assert list(described.candidates()) == ANSWERS[name]
    assert described.score_all == (name in ("vqa", "imagenet_all"))
    # What training learns to write is one of them.
    task = opened(name, "train")
    ids = [settings.vocabulary.encode(answer).tolist() for answer in described.candidates()]
    for index in range(len(task.records)):
        targets = task.preprocess(task.records[index], np.random.default_rng(0))["targets"]
        assert targets[targets != settings.vocabulary.eos_id].tolist() in ids


def test_decoding_configurations(settings):
    decoding = {name: eval_spec.find(name).decoding for name in TASKS}
    caption = decoding["coco_captioning"]
    assert (caption.beam_size, caption.max_length, caption.no_repeat_ngram_size) == (5, 16, 3)
    for name in ("refcoco", "refcoco_plus", "refcocog"):
        box = decoding[name]
        assert (box.beam_size, box.min_length, box.max_length, box.no_repeat_ngram_size) == (
            5,
            4,
            4,
            3,
        )
        assert eval_spec.find(name).max_image_size == 64
    headline = decoding["gigaword"]
    assert (headline.beam_size, headline.length_penalty, headline.max_length) == (6, 0.7, 32)
    image, codes = decoding["text_to_image"], settings.vocabulary.code_ids
    assert (image.method, image.beam_size, image.top_k) == ("sample", 24, 256)
    assert image.exact_length and image.max_length == 1024
    assert image.constraint_range == (codes.start, codes.stop) == (50265, 58457)
    assert not decoding["vqa_trie"].normalize_scores


def test_a_decoder_prompt_leaves_room_for_the_target(settings):
    prompted = DownstreamSettings(
        settings.vocabulary,
        settings.files,
        settings.data_dir,
        options=settings.options | {"decoder_prompt": "source"},
    )
    (task,) = seqio_bridge.weighted_tasks("glue_rte", "train", prompted)
    example = task.preprocess(task.records[0], np.random.default_rng(0))
    prompt = example["target_prefix"]
    np.testing.assert_array_equal(prompt, example["inputs"][1:])
    decoding = eval_spec.find("glue_rte", prompted).decoding
    assert decoding.max_length_per_source_token == 1
    assert eval_spec.find("glue_rte").decoding.max_length_per_source_token == 0


def test_tfds_takes_precedence_over_files(settings):
    both = DownstreamSettings(
        settings.vocabulary,
        settings.files,
        settings.data_dir,
        tfds={"mnli": "glue/mnli:2.0.0", "imagenet": "imagenet2012"},
        tfds_data_dir="tfds",
        class_names="class2label_new.json",
    )
    records = both.records("mnli", "validation_mismatched")
    assert (records.name, records.split, records.data_dir) == (
        "glue/mnli:2.0.0",
        "validation_mismatched",
        "tfds",
    )
    assert both.records("imagenet", "train").to_record.class_names == ("tench", "great white shark")
    assert len(both.records("rte", "train")) == 1


MISTAKES = {
    "an option": (dict(options={"image_pixels": 3}), "options names image_pixels; known are"),
    "data": (dict(files={"coco": {}}), "files names coco; known are caption"),
    "tfds": (dict(tfds={"vqa": "vqa"}), "tfds names vqa; known are caption"),
    "a split": (dict(files={"vqa": {"trian": "a.tsv"}}), "splits are train, validation"),
    "a path alone": (
        dict(files={"vqa": "a.tsv"}),
        "Give a dict from data to a dict from splits",
    ),
    "columns": (dict(selected_cols={"rte": "1,2"}), "must be 3 column numbers"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_settings_with_unknown_names_are_refused(settings, mistake):
    change, sentence = MISTAKES[mistake]
    with pytest.raises(ValueError, match=sentence):
        DownstreamSettings(settings.vocabulary, **change)


def test_errors_name_the_missing_setting(settings):
    empty = DownstreamSettings(settings.vocabulary, {"rte": {"train": "no.tsv"}})
    with pytest.raises(ValueError, match="no files of cola for the split train .*tfds = {'cola'"):
        empty.records("cola", "train")
    with pytest.raises(ValueError, match="for the split validation .*validation_split = None"):
        empty.records("vqa", "validation")
    with pytest.raises(FileNotFoundError, match="There is no file no.tsv"):
        empty.records("rte", "train")
    with pytest.raises(ValueError, match="set DownstreamSettings.vqa_answers to a file"):
        empty.choices("vqa_answers")
    with pytest.raises(ValueError, match="train.settings = @DownstreamSettings"):
        contextvars.Context().run(opened, "vqa", "train")  # without the fixture's settings


def test_candidates_are_read_from_json_or_text_but_not_from_a_pickle(tmp_path):
    for name, content in (
        ("a.json", '{"yes": 0, "no": 1}'),
        ("b.json", '["yes", "no", "yes"]'),
        ("c.txt", "yes\n no \n\n"),
    ):
        (tmp_path / name).write_text(content)
        assert read_choices(tmp_path / name) == ["yes", "no"]
    for name, content, sentence in (
        ("d.pkl", b"x", "is a pickle, which is not read"),
        ("e.txt", b"\x80\x04K\x01.", "is a pickle, which is not read"),
        ("f.json", b"[1, 2]", "must be a JSON list of answers"),
        ("g.json", b"{", "must be a JSON list of answers"),
        ("h.txt", b"\n", "has no answers"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            read_choices(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="There is no file of answers"):
        read_choices(tmp_path / "i.json")


def test_tasks_of_several_kinds_mix(settings):
    seqio.MixtureRegistry.add("glue_mixed", [("glue_rte", 2.0), ("glue_cola", 1.0)])
    try:
        tasks_of = seqio_bridge.weighted_tasks("glue_mixed", "train")
        assert {task.name: task.rate for task in tasks_of} == {"glue_rte": 2.0, "glue_cola": 1.0}
    finally:
        seqio.MixtureRegistry.remove("glue_mixed")
