"""Where a new run takes its parameters from.

INITIAL_CHECKPOINT_PATH is a whole model, ours or the original's; INITIAL_RESNET_PATH is a ResNet
that has learned from images alone.
"""

import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp

from ofa_jax.checkpoints import storage
from ofa_jax.interop import files, from_fairseq, resnet_file
from ofa_jax.model import OFAConfig, layout, parameter_groups
from ofa_jax.sharding import TrainState

# What a checkpoint's model may differ in without being another model.
_TRAINING_FIELDS = {
    "dtype",
    "code_image_size",
    "freeze_batch_norm",
    "adapter_width",
    "prefix_length",
    "second_image",
    "remat",
    *layout.LAYOUT_FIELDS,
} | {field.name for field in dataclasses.fields(OFAConfig) if field.name.endswith("_rate")}


@dataclasses.dataclass(frozen=True)
class WarmStart:
    """A checkpoint that a run begins from, opened and found to be of its model.

    Attributes:
      path: a run directory, a folder `checkpoints/<step>`, or a checkpoint of others.
      official: what a checkpoint of others holds, as views of its file; None for one of ours.
      theirs: the model it is of; None where a checkpoint of ours does not say.
    """

    path: str
    official: files.OfficialCheckpoint | None
    theirs: OFAConfig | None

    @classmethod
    def open(cls, path: str, model: OFAConfig) -> "WarmStart":
        """Checks that a checkpoint is of this model, as far as its configuration says.

        Args:
          path: see the class.
          model: of the run.

        Raises:
          FileNotFoundError, ValueError: there is none, or it is of another model.
        """
        official = files.read(path) if files.is_official(path) else None
        if official is not None:
            theirs = official.config
        else:
            storage.find(path)
            theirs = _model_of(path)
        if theirs is not None:
            _refuse_another_model(path, theirs, model)
        return cls(path, official, theirs)

    def take(self, new: TrainState, abstract: TrainState, model: OFAConfig) -> TrainState:
        """A state with the checkpoint's parameters and statistics.

        Args:
          new: of step 0.
          abstract: shapes and shardings of the state.
          model: of the run.

        Returns:
          `new` with the checkpoint's arrays; what its model does not have keeps its new values.
        """
        # The original has none of the groups; its configuration says so too.
        lacking = [
            group
            for group, field in parameter_groups.OPTIONAL_GROUPS.items()
            if self.theirs is None or not getattr(self.theirs, field)
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
            variables = placed(from_fairseq(self.official.state_dict, model), wanted)
        elif self.theirs is not None and not layout.same_layout(self.theirs, model):
            held = layout.convert(storage.load_variables(self.path), self.theirs, model)
            variables = placed(held, wanted)
        else:
            variables = storage.restore_variables(self.path, wanted)
        variables = flax.traverse_util.unflatten_dict(
            flax.traverse_util.flatten_dict(dict(variables)) | added
        )
        return _with_variables(new, variables)


@dataclasses.dataclass(frozen=True)
class ResNetWarmStart:
    """A ResNet in torchvision's form, opened and found to be of the model's shape.

    Attributes:
      variables: {"params": {"encoder": {"resnet": ...}}, "batch_stats": ...}.
    """

    variables: dict[str, Any]

    @classmethod
    def open(cls, path: str, model: OFAConfig) -> "ResNetWarmStart":
        """Reads it.

        Args:
          path: see `interop.resnet_file`.
          model: of the run.

        Raises:
          FileNotFoundError, ValueError: there is none, or it is of another shape.
        """
        return cls(resnet_file.read(path, model))

    def take(self, new: TrainState, abstract: TrainState) -> TrainState:
        """`new`, of step 0 and with the shardings of `abstract`, with this ResNet in it."""
        flatten = flax.traverse_util.flatten_dict
        ours = flatten(self.variables)
        wanted = {path: x for path, x in flatten(abstract.variables).items() if path in ours}
        wanted = flax.traverse_util.unflatten_dict(wanted)
        taken = flatten(placed(self.variables, wanted))
        variables = flax.traverse_util.unflatten_dict(flatten(new.variables) | taken)
        return _with_variables(new, variables)


def _with_variables(new: TrainState, variables: Any) -> TrainState:
    new = new.replace(params=variables["params"], batch_stats=variables["batch_stats"])
    if new.ema_params is not None:
        new = new.replace(ema_params=jax.tree.map(jnp.copy, new.params))
    return new


def _model_of(path: str) -> OFAConfig | None:
    """What a checkpoint of ours is of, if it says so."""
    try:
        return storage.read_model(path)
    except FileNotFoundError:
        return None


def _refuse_another_model(path: str, theirs: OFAConfig, model: OFAConfig) -> None:
    wrong = [
        f"{field.name} is {getattr(theirs, field.name)} there and {getattr(model, field.name)} here"
        for field in dataclasses.fields(OFAConfig)
        if field.name not in _TRAINING_FIELDS
        and getattr(theirs, field.name) != getattr(model, field.name)
    ]
    if wrong:
        extend = ""
        if theirs.vocab_size < model.vocab_size:
            extend = (
                " (python -m tools.convert_checkpoint extends a vocabulary with "
                f"--vocab_size={model.vocab_size})"
            )
        raise ValueError(
            f"INITIAL_CHECKPOINT_PATH {path} is of another model: {'; '.join(wrong)}. Choose the "
            f"model's size and vocabulary accordingly{extend}."
        )


def placed(arrays: Any, wanted: Any) -> Any:
    """Arrays of this host, as global arrays of the wanted shardings.

    Raises:
      ValueError: some are lacking, or too many.
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
                array.shape, wanted[path].sharding, lambda index, array=array: array[index]
            )
            for path, array in held.items()
        }
    )
