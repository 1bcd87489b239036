"""What `ofa-convert` reads: checkpoints of fairseq, Hugging Face, t5x, BART and ours."""

import argparse
import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from etils import epath

from ofa_jax.checkpoints import storage, t5x_files
from ofa_jax.checkpoints.t5x_files import T5XState
from ofa_jax.inference import loading
from ofa_jax.interop import (
    averages,
    files,
    from_fairseq,
    initialise_from_bart,
    resize_vocabulary,
    tensor_layout,
    to_fairseq,
    torch_file,
)
from ofa_jax.model import OFA, OFAConfig
from ofa_jax.reports import model_card
from ofa_jax.tokenizers.processor import Processor
from ofa_jax.utils import progress

OURS, T5X = "ours", "t5x"
"""Layouts of run directories."""
BART_MASK_ID = 50264
"""<mask> in the official vocabulary: BART's text ids come before it."""
_ANY_BATCH = {
    "encoder_input_tokens": np.zeros((1, 2), np.int32),
    "decoder_input_tokens": np.zeros((1, 2), np.int32),
}


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A checkpoint of any layout.

    Attributes:
      config: of the model.
      variables: ours; None where an official state dict is enough.
      state_dict: the official one, as views of its file; None for a checkpoint of ours.
      origin: see `files.OfficialCheckpoint`.
      processor: vocabulary and image sizes; None if they are not known.
      results: of its evaluations.
      training: step and optimiser's state, where t5x is read or written; None elsewhere.
    """

    config: OFAConfig
    variables: dict[str, Any] | None = None
    state_dict: Mapping[str, np.ndarray] | None = None
    origin: Mapping[str, Any] | None = None
    processor: Processor | None = None
    results: Sequence[model_card.Result] = ()
    training: T5XState | None = None

    @property
    def num_parameters(self) -> int:
        """Number of parameters of the model."""
        if self.variables is not None:
            return sum(array.size for array in jax.tree.leaves(self.variables["params"]))
        entries = tensor_layout.tensor_entries(self.config)
        return sum(math.prod(entry.shape) for entry in entries if entry.path[0] == "params")


def load(options: argparse.Namespace, layout: str) -> Loaded:
    """Loads any checkpoint; prints what it does not take."""
    path = beside = options.input
    if t5x_files.is_t5x(path):
        beside = str(t5x_files.find(path))
        loaded = _load_t5x(options, layout)
    elif files.is_official(path):
        loaded = _load_official(path, options.vocab_size, options.weights, layout)
    else:
        loaded = _load_ours(path, options.vocab_size, options.weights, layout)
    processor = _find_processor(beside, options.vocabulary, loaded.config)
    return dataclasses.replace(loaded, processor=processor, results=_find_results(options, layout))


def _load_official(path: str, vocab_size: int | None, weights: str, layout: str) -> Loaded:
    """Loads an official checkpoint; into variables of ours only if these are to be written."""
    official = files.read(path, weights)
    state_dict, config = official.state_dict, official.config
    if vocab_size is not None:
        state_dict = resize_vocabulary(state_dict, vocab_size)
        config = config.replace(vocab_size=vocab_size)
    variables = from_fairseq(state_dict, config) if layout in (OURS, T5X) else None
    if sentence := official.describe_weights(path, "--weights"):
        print(sentence)
    if official.unread:
        print(f"{path} also holds what is not read: {', '.join(official.unread)}.")
    if official.is_chinese:
        print(
            f"{path} was trained with the vocabulary of the Chinese models, which this library "
            "does not read: its weights are converted, but the result cannot be asked anything."
        )
    return Loaded(config, variables, state_dict, official.origin)


def _load_t5x(options: argparse.Namespace, layout: str) -> Loaded:
    """Loads a checkpoint of t5x; prints what does not map."""
    if options.weights != averages.MODEL:
        raise ValueError("A checkpoint of t5x holds one set of weights: leave --weights out.")
    folder = t5x_files.find(options.input)
    config = _model_of_t5x(folder, options.model_config)
    network = OFA(config)
    wanted = jax.eval_shape(lambda: nn.meta.unbox(network.init(jax.random.key(0), _ANY_BATCH)))
    with progress.substage("reading the checkpoint"):
        training = t5x_files.read(folder, layout in (OURS, T5X), dict(wanted))
    if training.unread:
        print(f"The optimiser's state of {folder} is not taken: {training.unread}.")
    training, config = _resize(training, config, options.vocab_size)
    if layout == OURS and training.param_states is not None:
        if t5x_files.to_train_state(training) is None:
            print(
                f"The optimiser's state of {folder} is not taken: it is not that of "
                "ofa_jax.t5x.adamw."
            )
        elif training.run is None:
            print(
                "The optimiser's state is kept, but ofa-train cannot continue from it: the "
                "training did not begin as a run of ofa-train. INITIAL_CHECKPOINT_PATH takes the "
                "weights."
            )
    return Loaded(config, training.variables, origin=_origin_in(folder.parent), training=training)


def _model_of_t5x(folder: epath.Path, given: str | None) -> OFAConfig:
    """Returns the model of a checkpoint of t5x."""
    place = folder.parent if given is None else epath.Path(given)
    path = place if place.name.endswith(".json") else place / storage.MODEL_FILE
    if not path.exists():
        raise FileNotFoundError(
            f"There is no {path}, so the model of {folder} is unknown: --model_config=PATH names "
            "one of the same model. ofa_jax.t5x writes it where OFAModel.model_dir is set."
        )
    return storage.parse_model_config(path)


def _resize(
    training: T5XState, config: OFAConfig, vocab_size: int | None
) -> tuple[T5XState, OFAConfig]:
    """Extends the vocabulary; the optimiser's state, which does not fit then, is left out."""
    if vocab_size is None:
        return training, config
    if training.param_states is not None:
        print("The optimiser's state is not taken: it does not fit the extended vocabulary.")
    state_dict = resize_vocabulary(to_fairseq(training.variables, config), vocab_size)
    config = config.replace(vocab_size=vocab_size)
    return T5XState(training.step, from_fairseq(state_dict, config)), config


def _load_ours(path: str, vocab_size: int | None, weights: str, layout: str) -> Loaded:
    """Loads a checkpoint of a run."""
    if weights not in (averages.MODEL, averages.EMA):
        raise ValueError(f"{path} does not hold the weights {weights}: give model or ema.")
    averaged = weights == averages.EMA
    has_average = storage.has_average(path)
    if averaged and not has_average:
        raise ValueError(f"{path} has no averaged weights: leave --weights=ema out.")
    with progress.substage("reading the checkpoint"):
        if layout == T5X:
            training = t5x_files.read_ours(path, averaged)
        else:
            training = T5XState(0, storage.load_numpy_variables(path, averaged))
    training, config = _resize(training, storage.read_model_config(path), vocab_size)
    origin = _origin_beside(path)
    if has_average and not averaged:
        print(f"{path} holds averaged weights, which are not taken: --weights=ema takes them.")
    return Loaded(
        config, training.variables, origin=origin, training=training if layout == T5X else None
    )


def _origin_beside(path: str) -> Mapping[str, Any] | None:
    folder = storage.find_checkpoint(path)
    found = (_origin_in(directory) for directory in (folder, *folder.parents[:2]))
    return next((origin for origin in found if origin is not None), None)


def _origin_in(directory: epath.Path) -> Mapping[str, Any] | None:
    path = directory / "origin.json"
    return files.read_origin(path) if path.is_file() else None


def _find_processor(path: str, vocabulary: str | None, config: OFAConfig) -> Processor | None:
    """Returns vocabulary and image sizes; None, with a sentence, if INPUT's cannot be used."""
    try:
        processor = loading.find_processor(path, vocabulary)
    except (ValueError, OSError) as error:
        if vocabulary is not None:
            raise
        print(f"The vocabulary beside the weights is not taken: {error}")
        return None
    if processor is None:
        return None
    size = processor.vocabulary.vocab_size
    if size == config.vocab_size:
        return processor
    sentence = f"the vocabulary has {size:,} ids and the model {config.vocab_size:,}"
    if vocabulary is not None:
        raise ValueError(f"{sentence}: give that of its training.")
    print(f"The vocabulary beside the weights is not taken: {sentence}.")
    return None


def _find_results(options: argparse.Namespace, layout: str) -> Sequence[model_card.Result]:
    """Returns the results that a model card shows."""
    if layout != "huggingface":
        return ()
    if options.results is not None:
        return model_card.read_results(pathlib.Path(options.results))
    if files.is_official(options.input) or t5x_files.is_t5x(options.input):
        return ()
    folder = storage.find_checkpoint(options.input)
    try:
        run = pathlib.Path(folder.parents[1])
        return model_card.read_results(run, storage.step_of(folder.name))
    except (ValueError, OSError) as error:
        print(f"The model card has no results: {error}")
        return ()


def load_bart(path: str, size: str, seed: int) -> Loaded:
    """Initialises a model of a published size whose text part is BART's."""
    config = getattr(OFAConfig, size)()
    bart = torch_file.load_state_dict(path, "BART", ("model",))
    new = jax.jit(lambda key: nn.meta.unbox(OFA(config).init(key, _ANY_BATCH)))(
        jax.random.key(seed)
    )
    state_dict = to_fairseq(jax.tree.map(np.asarray, new), config)
    state_dict, taken = initialise_from_bart(state_dict, bart, BART_MASK_ID)
    print(f"Took {len(taken)} of BART's {len(bart)} tensors.")
    return Loaded(config, from_fairseq(state_dict, config))
