"""The targets of patches and texts are those of the scene, and a model learns them."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from ofa_jax.checkpoints.warm_start import WarmStart
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.model import OFAConfig
from ofa_jax.scenes.nouns import plural
from tools import encoder_targets, encoder_training, pretrain_encoder
from tools.encoder_targets import MAX_COUNT, NO_TARGET, TargetMaker


@pytest.fixture(scope="module")
def data(small_scenes):
    return Scenes(str(small_scenes))


@pytest.fixture(scope="module")
def maker(data):
    names = data.negatives().object_names
    size = data.description["options"]["image_size"]
    return TargetMaker(data.vocabulary(num_bins=64), names, size)


def texts_of(maker, example):
    """Yields the decoded instruction up to each text's last token, with the text's number."""
    for number, end in enumerate(example["text_ends"]):
        if end:
            tokens = example["encoder_input_tokens"][: end + 1]
            yield number, maker.vocabulary.decode(tokens)


def test_a_patch_shows_the_object_whose_box_has_its_centre():
    boxes = np.asarray([[0, 0, 20, 20], [10, 10, 64, 40]], np.float32)
    grid = encoder_targets.patch_owners(boxes, 64).reshape(4, 4)
    # Centres are at 8, 24, 40, 56.
    expected = [[0, -1, -1, -1], [-1, 1, 1, 1], [-1, 1, 1, 1], [-1, -1, -1, -1]]
    np.testing.assert_array_equal(grid, expected)
    # Both boxes have the centre (8, 8): the object whose own centre is nearer.
    boxes = np.asarray([[0, 0, 64, 64], [0, 0, 18, 18]], np.float32)
    assert encoder_targets.patch_owners(boxes, 64)[0] == 1
    assert (encoder_targets.patch_owners(np.zeros((0, 4), np.float32), 64) == -1).all()


def test_counts_and_boxes_of_nouns_are_those_of_the_scene(data, maker):
    records = data.records("all", "train")
    seen = set()
    for index in range(20):
        record = records[index]
        example = maker.random_map(record, np.random.default_rng(index))
        for number, text in texts_of(maker, example):
            (name,) = [n for n in maker.names if text.endswith((f" {n}", f" {plural(n)}"))]
            count = record["object_labels"].count(name)
            assert example["counts"][number] == min(count, MAX_COUNT)
            assert example["answers"][number] == NO_TARGET
            assert example["text_weights"][number] == (count == 1)
            seen.add(min(count, 2))
            if count == 1:
                box = record["object_boxes"][record["object_labels"].index(name)]
                bins = example["text_bins"][number] * maker.image_size / 63
                np.testing.assert_allclose(bins, box, rtol=1e-5)
    assert seen == {0, 1, 2}


def test_phrases_questions_and_captions_have_their_targets(data, maker):
    everything = dataclasses.replace(maker, list_share=0.0, length=60)
    records = data.records("all", "train")
    kinds = set()
    for index in range(20):
        record = records[index]
        example = everything.random_map(record, np.random.default_rng(index))
        for number, text in texts_of(everything, example):
            answer, weight = example["answers"][number], example["text_weights"][number]
            if example["counts"][number] != NO_TARGET:
                continue
            if answer == NO_TARGET:
                assert weight == 1
                bins = example["text_bins"][number] * maker.image_size / 63
                shown = [
                    box
                    for phrase, box in zip(record["phrases"], record["phrase_boxes"], strict=True)
                    if text.endswith(phrase) and np.allclose(box, bins, rtol=1e-5)
                ]
                assert shown, text
                kinds.add("phrase")
                continue
            assert weight == 0
            word = maker.vocabulary.decode([answer]).strip()
            answers = {
                given.split()[0]
                for question, given in zip(record["questions"], record["answers"], strict=True)
                if text.endswith(question)
            }
            answers |= {"yes" for caption in record["captions"] if text.endswith(caption)}
            answers |= {"no" for caption in record["negative_captions"] if text.endswith(caption)}
            assert any(given.startswith(word) for given in answers), text
            kinds.add("question" if text.endswith("?") else f"caption {word}")
    assert kinds == {"phrase", "question", "caption yes", "caption no"}


def test_patches_have_the_nouns_and_boxes_of_their_objects(data, maker):
    record = data.records("all", "train")[0]
    example = maker.random_map(record, np.random.default_rng(0))
    owners = encoder_targets.patch_owners(np.asarray(record["object_boxes"]), maker.image_size)
    for patch, owner in enumerate(owners):
        noun = example["patch_nouns"][patch]
        if owner < 0:
            assert noun == len(maker.names)
        else:
            assert maker.names[noun] == record["object_labels"][owner]
    used = example["patch_weights"] > 0
    assert used.sum() == min((owners >= 0).sum(), maker.num_patches)
    of_used = np.asarray(record["object_boxes"])[owners[example["patch_indices"][used]]]
    np.testing.assert_allclose(
        example["patch_bins"][used] * maker.image_size / 63, of_used, rtol=1e-5
    )


def test_the_same_seed_gives_the_same_batches(data, maker):
    records = data.records("all", "train")

    def first_two(seed):
        return list(itertools.islice(encoder_targets.batches(records, maker, 3, seed), 2))

    jax.tree.map(np.testing.assert_array_equal, first_two(5), first_two(5))
    tokens = [batches[0]["encoder_input_tokens"] for batches in (first_two(5), first_two(6))]
    assert (tokens[0] != tokens[1]).any()


class _Silent:
    def update(self, done, total):
        pass


def test_the_encoder_learns_a_batch_by_heart(data, maker):
    everything = dataclasses.replace(maker, list_share=0.5, length=48)
    batch = next(encoder_targets.batches(data.records("all", "train"), everything, 4, 0))
    config = OFAConfig.scenes(
        vocab_size=maker.vocabulary.vocab_size,
        width=64,
        ffn_width=64,
        num_heads=2,
        encoder_layers=1,
        decoder_layers=1,
        resnet_width=8,
    )
    ids = tuple(int(maker.vocabulary.encode(f" {name}")[0]) for name in maker.names)
    trainer = encoder_training.Trainer(config, ids, maker.vocabulary.bin_ids)
    repeated = [(60, itertools.repeat(batch)), (20, itertools.repeat(batch))]
    params, statistics = encoder_training.learn(trainer, repeated, 1e-2, 0, _Silent())
    found = encoder_training.accuracies(trainer, params, statistics, iter([batch]))
    assert set(found) == {"patch_nouns", "counts", "text_boxes", "answers"}
    assert min(found.values()) > 0.9, found
    other = next(encoder_targets.batches(data.records("all", "validation"), everything, 4, 0))
    wrong = encoder_training.accuracies(trainer, params, statistics, iter([other]))
    assert wrong["text_boxes"] < 0.5  # a box learnt by heart is not found in another image


def test_the_command_writes_an_initial_checkpoint_and_keeps_it(small_scenes, tmp_path, capsys):
    output = tmp_path / "folder" / "encoder"
    arguments = [f"--data_dir={small_scenes}", f"--output={output}", "--batch_size=2"]
    arguments += ["--list_steps=1", "--steps=1", "--layers=1"]
    assert pretrain_encoder.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "Right on validation images: " in shown and "of the answers" in shown
    vocabulary = Scenes(str(small_scenes)).vocabulary(num_bins=64)
    model = OFAConfig.scenes(vocab_size=vocabulary.vocab_size, encoder_layers=1, decoder_layers=1)
    assert WarmStart.open(str(output), model).config == model
    assert [path.name for path in output.parent.iterdir()] == ["encoder"]
    assert pretrain_encoder.main(arguments) == 0
    assert "is there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--list_steps=0", "--list_steps"),
        ("--steps=-1", "--steps"),
        ("--learning_rate=nan", "--learning_rate must be positive"),
        ("--data_dir={}", "tools.build_scenes"),
    ],
)
def test_wrong_arguments_are_refused_in_one_sentence(argument, sentence, tmp_path, capsys):
    assert pretrain_encoder.main([argument.format(tmp_path)]) == 2
    assert sentence in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(small_scenes, tmp_path, capsys):
    (tmp_path / "mine").write_text("kept")
    assert pretrain_encoder.main([f"--data_dir={small_scenes}", f"--output={tmp_path}"]) == 2
    assert "give --output a new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
