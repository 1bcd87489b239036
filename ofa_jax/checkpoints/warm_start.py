"""Initialises the parameters of a new run from a checkpoint.

INITIAL_CHECKPOINT_PATH is a whole model, one of ours or an official one; INITIAL_RESNET_PATH is a
ResNet that was trained on image classification.
"""

import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from ofa_jax.checkpoints import storage
from ofa_jax.interop import averages, files, from_fairseq, resnet_file
from ofa_jax.model import OFAConfig, layout, parameter_groups
from ofa_jax.sharding import TrainState

__all__ = [
    "ResNetWarmStart",
    "WarmStart",
    "list_differences",
    "log_weights",
    "place",
    "takes_average",
]

# Fields in which a checkpoint's model may differ: they do not change the parameters, or only add
# some.
_TRAINING_FIELDS = {
    "dtype",
    "code_image_size",
    "freeze_batch_norm",
    "adapter_width",
    "prefix_length",
    "second_image",
    "remat",
    "attention_implementation",
    *layout.LAYOUT_FIELDS,
} | {field.name for field in dataclasses.fields(OFAConfig) if field.name.endswith("_rate")}


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """A checkpoint of the run's model, to initialise the run from.

    Attributes:
      path: a run directory, a folder `checkpoints/<step>`, or an official checkpoint.
      official: the content of an official checkpoint, as views of its file; None for one of ours.
      config: the checkpoint's model; None if a checkpoint of ours has no model.json.
      averaged: whether to take the averaged parameters of a checkpoint of ours.
    """

    path: str
    official: files.OfficialCheckpoint | None
    config: OFAConfig | None
    averaged: bool = False

    @classmethod
    def open(cls, path: str, model: OFAConfig, weights: str = "model") -> "WarmStart":
        """Opens a checkpoint and checks that its configuration, if known, is that of the run.

        Weights that the checkpoint holds and that are not taken are logged.

        Args:
          path: see the class.
          model: of the run.
          weights: "model" for the last parameters, "ema" for the averaged ones.

        Raises:
          FileNotFoundError: there is no checkpoint.
          ValueError: it is of another model, or does not hold these weights.
        """
        official = files.read(path, weights) if files.is_official(path) else None
        config: OFAConfig | None
        averaged = False
        if official is not None:
            config = official.config
        else:
            storage.find_checkpoint(path)
            config = _read_config(path)
            averaged = takes_average(path, weights, default=False)
        if config is not None:
            _check_same_model(path, config, model)
        if official is not None:
            log_weights(path, official, "train.initial_checkpoint_weights")
        return cls(path, official, config, averaged)

    def initialize(self, new: TrainState, abstract: TrainState, model: OFAConfig) -> TrainState:
        """Returns a state with the checkpoint's parameters and batch statistics.

        Args:
          new: the state of step 0.
          abstract: shapes and shardings of the state.
          model: of the run.

        Returns:
          `new` with the checkpoint's arrays. Parameters that the checkpoint's model lacks keep
          their initial values.
        """
        # Official models have none of these groups, and their configuration says so.
        lacking = [
            group
            for group, field in parameter_groups.OPTIONAL_GROUPS.items()
            if self.config is None or not getattr(self.config, field)
        ]
        given = flax.traverse_util.flatten_dict(new.variables)
        added = {
            path: x for path, x in given.items() if parameter_groups.in_groups(path[1:], lacking)
        }
        wanted = flax.traverse_util.flatten_dict(abstract.variables)
        wanted = flax.traverse_util.unflatten_dict(
            {path: x for path, x in wanted.items() if path not in added}
        )
        if self.official is not None:
            variables = place(from_fairseq(self.official.state_dict, model), wanted)
        elif self.config is not None and not layout.same_layout(self.config, model):
            held = layout.convert(
                storage.load_numpy_variables(self.path, self.averaged), self.config, model
            )
            variables = place(held, wanted)
        else:
            variables = storage.restore_variables(self.path, wanted, self.averaged)
        variables = flax.traverse_util.unflatten_dict(
            flax.traverse_util.flatten_dict(dict(variables)) | added
        )
        return _with_variables(new, variables)


@dataclasses.dataclass(frozen=True)
class ResNetWarmStart:
    """A ResNet in torchvision's format with the shape of the run's ResNet.

    Attributes:
      variables: {"params": {"encoder": {"resnet": ...}}, "batch_stats": ...}.
    """

    variables: dict[str, Any]

    @classmethod
    def open(cls, path: str, model: OFAConfig) -> "ResNetWarmStart":
        """Reads a ResNet.

        Args:
          path: see `ofa_jax.interop.resnet_file`.
          model: of the run.

        Raises:
          FileNotFoundError: there is no file.
          ValueError: the ResNet has another shape.
        """
        return cls(resnet_file.read(path, model))

    def initialize(self, new: TrainState, abstract: TrainState) -> TrainState:
        """Returns `new`, a state of step 0, with this ResNet, sharded as in `abstract`."""
        flatten = flax.traverse_util.flatten_dict
        ours = flatten(self.variables)
        wanted = {path: x for path, x in flatten(abstract.variables).items() if path in ours}
        wanted = flax.traverse_util.unflatten_dict(wanted)
        taken = flatten(place(self.variables, wanted))
        variables = flax.traverse_util.unflatten_dict(flatten(new.variables) | taken)
        return _with_variables(new, variables)


def takes_average(path: str, weights: str | None, default: bool) -> bool:
    """Returns whether to take the averaged parameters of a checkpoint of ours.

    Logs when it holds averaged parameters and the last ones are taken.

    Args:
      path: of the checkpoint.
      weights: "model", "ema", or None for the default.
      default: whether averaged parameters are taken where there are some.

    Raises:
      ValueError: there are no such weights.
    """
    if weights not in (None, averages.MODEL, averages.EMA):
        raise ValueError(f"{path} does not hold the weights {weights!r}: give 'model' or 'ema'.")
    if weights is None and default:
        return True
    has_average = storage.has_average(path)
    if weights == averages.EMA and not has_average:
        raise ValueError(f"{path} has no averaged weights: give 'model' in place of 'ema'.")
    if has_average and weights != averages.EMA:
        logging.warning("%s holds averaged weights, which are not taken: 'ema' takes them.", path)
    return weights == averages.EMA


def log_weights(path: str, official: files.OfficialCheckpoint, option: str = "weights") -> None:
    """Logs which weights of an official checkpoint are taken, if it has several."""
    if sentence := official.describe_weights(path, option):
        logging.warning("%s", sentence)


def _with_variables(new: TrainState, variables: Any) -> TrainState:
    """Returns a state with these variables; its averaged parameters, if any, are a copy."""
    new = dataclasses.replace(new, params=variables["params"], batch_stats=variables["batch_stats"])
    if new.ema_params is not None:
        new = dataclasses.replace(new, ema_params=jax.tree.map(jnp.copy, new.params))
    return new


def _read_config(path: str) -> OFAConfig | None:
    """Returns the configuration beside a checkpoint of ours, if there is one."""
    try:
        return storage.read_model_config(path)
    except FileNotFoundError:
        return None


def list_differences(saved: OFAConfig, model: OFAConfig) -> list[str]:
    """Returns a phrase for each field in which two models differ and that their parameters need."""
    return [
        f"{field.name} is {getattr(saved, field.name)} there and {getattr(model, field.name)} here"
        for field in dataclasses.fields(OFAConfig)
        if field.name not in _TRAINING_FIELDS
        and _plain(getattr(saved, field.name)) != _plain(getattr(model, field.name))
    ]


def _plain(value: Any) -> Any:
    """Returns a list as a tuple: gin files may write either."""
    return tuple(value) if isinstance(value, list) else value


def _check_same_model(path: str, config: OFAConfig, model: OFAConfig) -> None:
    """Raises ValueError if a checkpoint's configuration differs in a field that matters."""
    if wrong := list_differences(config, model):
        extend = ""
        if config.vocab_size < model.vocab_size:
            extend = (
                " (python -m tools.convert_checkpoint extends a vocabulary with "
                f"--vocab_size={model.vocab_size})"
            )
        raise ValueError(
            f"INITIAL_CHECKPOINT_PATH {path} is of another model: {'; '.join(wrong)}. Choose the "
            f"model's size and vocabulary accordingly{extend}."
        )


def place(arrays: Any, wanted: Any) -> Any:
    """Returns a host's arrays as global arrays with the shardings of `wanted`.

    Args:
      arrays: a tree of arrays; every host holds all of them.
      wanted: a tree of the same structure, of ShapeDtypeStructs with shardings.

    Raises:
      ValueError: the structures differ.
    """
    held, wanted = (flax.traverse_util.flatten_dict(dict(tree)) for tree in (arrays, wanted))
    for what, names in (("lacks", wanted.keys() - held), ("has", held.keys() - wanted)):
        if names:
            raise ValueError(
                f"The checkpoint {what} {'/'.join(min(names))}"
                f"{f' and {len(names) - 1} more' * (len(names) > 1)}, unlike this model."
            )
    return flax.traverse_util.unflatten_dict(
        {
            path: jax.make_array_from_callback(
                array.shape, wanted[path].sharding, np.asarray(array).__getitem__
            )
            for path, array in held.items()
        }
    )
