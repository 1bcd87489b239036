"""t5x's trainer on eight simulated devices, over a mixture of our tasks; see `test_t5x`."""

import os

import numpy as np
import pytest
from simulated_devices import run_on_eight_devices
from small_model import SMALL

from ofa_jax.checkpoints import storage
from ofa_jax.tokenizers.processor import Processor

FOLDERS = os.environ.get("T5X_CHECKOUT", "")
pytestmark = pytest.mark.skipif(not FOLDERS, reason="T5X_CHECKOUT names no checkout of t5x")

PROGRAM = """
import json, os, sys
sys.path += os.environ["T5X_CHECKOUT"].split(os.pathsep)

import jax, numpy as np
from jax.sharding import Mesh
from small_model import SMALL

import tasks.pretraining
from ofa_jax import t5x as ofa_t5x
from ofa_jax.data import pretraining_settings
from ofa_jax.data.features import Stream
from ofa_jax.data.sources.scenes import Scenes
from ofa_jax.data.task_settings import set_default_settings
from t5x import partitioning, trainer, utils

set_default_settings(pretraining_settings.scenes_settings(
    Scenes(sys.argv[1]), image_size=64, code_image_size=32, text_window=32))
mixture = ofa_t5x.grouped_mixture("ofa_pretrain")
lengths = {"inputs": 48, "targets": 32}
stream = Stream("all", mixture, 8, lengths, image_size=64, code_targets=True)
config = SMALL.replace(vocab_multiple=16, max_source_positions=64, max_target_positions=64)

class OneDevice(partitioning.PjitPartitioner):
    mesh = property(
        lambda self: Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model")))

results = {}
for name, kind, options, dims in (
        ("one device", OneDevice, {"num_partitions": 1}, 1),
        ("data and model", partitioning.PjitPartitioner, {"model_parallel_submesh": (1, 2)}, 1),
        ("split both ways", partitioning.PjitPartitioner, {"model_parallel_submesh": (1, 2)}, 2)):
    adamw = ofa_t5x.adamw(learning_rate=1e-2, total_steps=100, warmup=0)
    model = ofa_t5x.OFAModel(config, stream, adamw, model_dir=sys.argv[2])
    partitioner = kind(logical_axis_rules=ofa_t5x.logical_axis_rules(dims), **options)
    data = utils.DatasetConfig(
        mixture, lengths, "train", 8, shuffle=False, seed=0, pack=False, trim_output_features=False)
    dataset = utils.get_dataset(data, 0, 1, model.FEATURE_CONVERTER_CLS)
    batches = list(dataset.take(3).as_numpy_iterator())
    states = utils.TrainStateInitializer(
        model.optimizer_def, model.get_initial_variables, {}, partitioner)
    state = states.from_scratch(jax.random.PRNGKey(0))
    with trainer.Trainer(
            model, state, partitioner, (), None, states.train_state_axes, jax.random.PRNGKey(1),
            lambda step: 0.0, None) as run:
        found = [run.train(iter([batch]), 1).result() for batch in batches]
        params = run.train_state.params
    kernel = params["encoder"]["layer_0"]["feed_forward"]["expand"]["kernel"]
    results[name] = {
        "mesh": list(partitioner.mesh.devices.shape),
        "loss": [float(x["loss_per_nonpadding_target_token"].value) for x in found],
        "loss of groups": [float(x["loss_of_groups"].value) for x in found],
        "shard": kernel.addressable_shards[0].data.shape,
        "groups": [batch["loss_groups"].tolist() for batch in batches],
        "images": [batch["encoder_image_mask"].tolist() for batch in batches]}
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("t5x") / "run"


@pytest.fixture(scope="module")
def results(small_scenes, model_dir):
    return run_on_eight_devices(PROGRAM, small_scenes, model_dir)


@pytest.mark.parametrize("mesh", ["data and model", "split both ways"])
@pytest.mark.parametrize("name", ["loss", "loss of groups"])
def test_three_steps_on_eight_devices_have_the_losses_of_one(results, mesh, name):
    """Sums of positive float32 numbers in another order.

    Some 100 tokens of width 16 to 32: 3,000 additions of relative error 2^-24, rounded at random,
    are sqrt(3000) 2^-24 = 3e-6. Updates of Adam carry the error of the gradient on, at most once a
    step: 1e-5 after three of them.
    """
    assert results[mesh]["mesh"] == [4, 2] and results["one device"]["mesh"] == [1, 1]
    losses = results["one device"][name]
    assert len(set(losses)) == 3 and np.all(np.isfinite(losses))
    np.testing.assert_allclose(results[mesh][name], losses, rtol=1e-5)


def test_parameters_are_split_over_the_axes_of_the_rules(results):
    """The kernel has 16 inputs (embed, split over data in the second way) and 32 outputs (mlp)."""
    assert [results[mesh]["shard"] for mesh in results] == [[16, 32], [16, 16], [4, 16]]


def test_examples_of_a_mixture_know_their_loss_group(results):
    """Text has no image; it is among the others (0), pairs are 1."""
    groups = np.array(results["one device"]["groups"])
    images = np.array(results["one device"]["images"])
    assert set(groups.ravel()) == {0, 1} and not images.all()
    assert not np.any(groups[~images])
    assert results["one device"]["loss of groups"] != results["one device"]["loss"]


def test_the_model_describes_itself_for_those_who_convert(results, model_dir):
    config = storage.parse_model_config(model_dir / "model.json")
    processor = Processor.load(model_dir)
    assert (config.width, config.vocab_multiple) == (SMALL.width, 16)
    assert processor.vocabulary.vocab_size == config.vocab_size > 800
    assert processor.image_size == 64 and processor.image_tokenizer is not None
