"""The command that trains an image tokenizer, and the tokenizer in a run's settings."""

import numpy as np
import pytest
from small_tokenizer import TINY

from ofa_jax.data.pretraining_settings import scenes_settings
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.interop import image_tokenizer_file
from ofa_jax.tokenizers import PatchCodebook
from tools import train_image_tokenizer

FILE = "--gin_file=runs/image_tokenizer_scenes.gin"
SMALL = [
    "--gin.VQGANConfig.block_size=1",
    "--gin.VQGANConfig.width=32",
    "--gin.VQGANConfig.multipliers=(1, 1)",
    "--gin.VQGANConfig.latent_width=32",
    "--gin.VQGANConfig.code_width=8",
    "--gin.VQGANConfig.num_codes=16",
    "--gin.ImageBatches.batch_size=2",
    "--gin.ImageBatches.image_size=16",
    "--gin.ImageBatches.crop_size=None",
    "--gin.ImageBatches.smallest_size=None",
    "--gin.train_image_tokenizer.validation_examples=2",
    "--gin.TRAIN_STEPS=1",
]


def command(small_scenes, tmp_path, *more):
    return [
        FILE,
        *SMALL,
        f"--gin.Scenes.data_dir='{small_scenes}'",
        f"--gin.patch_codebook.path='{small_scenes}/scenes/codebook.npz'",
        f"--gin.MODEL_DIR='{tmp_path}/run'",
        *more,
    ]


def test_the_command_trains_validates_and_exports(small_scenes, tmp_path, capsys):
    import gin

    gin.clear_config()
    assert train_image_tokenizer.main(command(small_scenes, tmp_path)) == 0
    gin.clear_config()
    output = capsys.readouterr().out
    assert "image_tokenizer.npz" in output and "The report is" in output
    run = tmp_path / "run"
    assert {"config.gin", "report.html", "validation.json", "image_tokenizer.ckpt"} <= {
        path.name for path in run.iterdir()
    }
    tokenizer = image_tokenizer_file.read(run)
    assert tokenizer.config == TINY
    images = np.zeros((1, 16, 16, 3), np.uint8)
    assert tokenizer.decode(tokenizer.encode(images)).shape == images.shape


def test_a_mistake_is_one_sentence(small_scenes, tmp_path, capsys):
    import gin

    gin.clear_config()
    with pytest.raises(SystemExit) as ended:
        train_image_tokenizer.main(
            command(small_scenes, tmp_path, "--gin.QuantizerConfig.kind='nearst'")
        )
    gin.clear_config()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "QuantizerConfig.kind is 'nearst'" in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_scenes_take_another_image_tokenizer(small_scenes):
    rng = np.random.default_rng(0)
    codebook = PatchCodebook(rng.integers(0, 256, (48, 192)).astype(np.float32))
    settings = scenes_settings(Scenes(str(small_scenes)), image_tokenizer=codebook)
    assert settings.vocabulary.num_codes == 48 and settings.image_tokenizer is codebook
    assert settings.objective_config.image_tokenizer is codebook
    own = scenes_settings(Scenes(str(small_scenes)))
    assert own.vocabulary.num_codes == own.image_tokenizer.num_codes == 32

    class Coarse:
        num_codes, pixels_per_code = 48, 16

        def encode(self, images):
            raise AssertionError

        decode = encode

    with pytest.raises(ValueError, match="image_tokenizer has 16 pixels per code"):
        scenes_settings(Scenes(str(small_scenes)), image_tokenizer=Coarse())
