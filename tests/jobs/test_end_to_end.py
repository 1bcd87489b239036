"""Images through everything: files, a Beam job, codes, a batch, a trained model, an image again."""

import dataclasses

import jax
import numpy as np
import pytest
from beam_jobs import assert_checksums, make_image
from run_fixtures import processor  # noqa: F401
from small_model import SMALL
from small_tokenizer import TINY

import ofa_jax
from ofa_jax.data.features import Stream
from ofa_jax.data.pretraining_settings import PretrainingSettings
from ofa_jax.data.sources.ofa_tsv import OfaTsv
from ofa_jax.jobs import command
from ofa_jax.tokenizers.vqgan import VQGAN, Network
from ofa_jax.training import loop
from ofa_jax.training.build import build_run
from ofa_jax.training.loop_config import LoopConfig
from ofa_jax.training.optimizer import OptimizerConfig

pytest.importorskip("apache_beam", reason="needs the extra 'beam'")

SIDE, HIDDEN = 48, 16
IMAGES = 5


@pytest.fixture(scope="module")
def tokenizer():
    """Returns a VQGAN of 8 pixels per code with random parameters."""
    config = dataclasses.replace(TINY, multipliers=(1, 1, 1, 1))
    shapes = jax.eval_shape(
        Network(config).init, jax.random.key(0), np.zeros((1, HIDDEN, HIDDEN, 3), np.float32)
    )
    rng = np.random.default_rng(0)
    draw = lambda x: rng.standard_normal(x.shape).astype(np.float32) / 4  # noqa: E731
    return VQGAN(config, jax.tree.map(draw, shapes["params"]))


def test_images_become_codes_a_batch_a_trained_model_and_images(
    tokenizer,
    processor,  # noqa: F811
    tmp_path,
):
    photos, codes = tmp_path / "photos", tmp_path / "codes"
    photos.mkdir()
    for number in range(IMAGES):
        (photos / f"{number}.png").write_bytes(make_image(number, (SIDE, SIDE)))
    (photos / "torn.png").write_bytes(make_image(9)[:60])
    tokenizer.save(tmp_path / "tokenizer.npz")
    job = ["encode_images", f"--input={photos}", f"--vqgan={tmp_path / 'tokenizer.npz'}"]
    sizes = [f"--image_size={SIDE}", f"--code_size={HIDDEN}", "--batch_size=2", "--shard_size=3"]
    assert command.main([*job, *sizes, f"--output_dir={codes}"]) == 0
    assert_checksums(codes)

    data = OfaTsv(images=str(codes / "images-*.tsv"))
    records = data.records("images", "train")
    coded = {tuple(records[number]["codes"].tolist()) for number in range(len(records))}
    assert len(records) == IMAGES and len(coded) > 1
    run = build_run(
        str(tmp_path / "run"),
        SMALL.replace(max_source_positions=64, code_image_size=HIDDEN),
        [Stream("images", "image_infilling", 2, {"inputs": 48, "targets": 6}, SIDE, None, True)],
        OptimizerConfig(1e-3, total_steps=1, warmup=0),
        LoopConfig(total_steps=1, log_period=1, checkpoint_period=1),
        settings=PretrainingSettings(
            data,
            processor.vocabulary,
            tokenizer,
            {
                "image_size": SIDE,
                "resize_range": (SIDE, SIDE),
                "resize_max_size": SIDE,
                "max_image_size": 64,
                "detection_image_size": SIDE,
                "infill_image_size": SIDE,
                "code_image_size": HIDDEN,
            },
        ),
        mixture_or_task_module="tasks.pretraining",
        validation_split=None,
    )
    batch = next(run.batches(0))["images"]
    first = processor.vocabulary.code_ids.start
    for targets in np.asarray(batch["decoder_target_tokens"]):
        assert tuple((targets[:4] - first).tolist()) in coded
    assert batch["encoder_images"].shape == (2, SIDE, SIDE, 3)
    loop.train(run)

    predictor = ofa_jax.Predictor(tmp_path / "run", source_lengths=(48,))
    found = predictor.predict(photos / "0.png", "what is the image in the middle part?")
    assert found.image.size == (HIDDEN, HIDDEN)
    made = tokenizer.decode(found.codes.reshape(1, 2, 2))[0]
    np.testing.assert_array_equal(np.asarray(found.image), made)
