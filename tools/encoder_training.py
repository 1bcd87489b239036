"""Learns a target at every patch and noun of a scene; for `tools.pretrain_encoder`."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ofa_jax.evaluation.metrics.boxes import iou
from ofa_jax.model import OFA, OFAConfig

from .encoder_targets import MAX_COUNT, NO_TARGET
from .pretrain_resnet import make_optimizer

_END_RATE = 0.05
_BIN_SPREAD = 0.7
"""Standard deviation of a box target in location bins: near bins are nearly right, which gives
their embeddings an order."""

Batch = Mapping[str, Array]


class Heads(nn.Module):
    """Predicts from the encoder's output; used in this stage alone.

    Attributes:
      num_bins: location bins.
    """

    num_bins: int

    @nn.compact
    def __call__(
        self,
        patches: Float[Array, "batch patches width"],
        chosen: Float[Array, "batch K width"],
        texts: Float[Array, "batch W width"],
        name_embeddings: Float[Array, "names width"],
        bin_embeddings: Float[Array, "bins width"],
        embeddings: Float[Array, "vocab width"],
    ) -> dict[str, Array]:
        """Computes logits.

        Args:
          patches: encoder output of all patches.
          chosen: that of the patches with a box as target.
          texts: that of the last token of every text.
          name_embeddings: of the nouns.
          bin_embeddings: of the location bins.
          embeddings: of all tokens.

        Returns:
          patch_nouns [B, P, names + 1], patch_bins [B, K, 4, bins], text_bins [B, W, 4, bins],
          counts [B, W, MAX_COUNT + 1], answers [B, W, vocab].
        """
        width = patches.shape[-1]
        # Embeddings are N(0, 0.02): products with normalised states of this width are near 1.
        scale = 8.0
        names = nn.Dense(width, kernel_init=nn.initializers.orthogonal(), name="names")(patches)
        nothing = nn.Dense(1, name="nothing")(patches)
        boxes = nn.Dense(4 * width, name="boxes")
        answers = nn.Dense(width, name="answers")(texts)

        def bins(states: Array) -> Array:
            corners = boxes(states).reshape(*states.shape[:2], 4, width)
            return scale * corners @ bin_embeddings.T

        return {
            "patch_nouns": jnp.concatenate([scale * names @ name_embeddings.T, nothing], axis=-1),
            "patch_bins": bins(chosen),
            "text_bins": bins(texts),
            "counts": nn.Dense(MAX_COUNT + 1, name="counts")(texts),
            "answers": scale * answers @ embeddings.T,
        }


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The model with its heads, and the loss of a batch.

    Attributes:
      config: of the model.
      name_ids: the tokens that stand for the nouns; of a noun of several tokens the first.
      bin_ids: location bins.
    """

    config: OFAConfig
    name_ids: tuple[int, ...]
    bin_ids: range

    @property
    def model(self) -> OFA:
        """The model."""
        return OFA(self.config)

    def initialise(self, batch: Batch, seed: int) -> tuple[dict[str, Any], Any]:
        """Returns parameters {"model", "heads"} and batch statistics of step 0."""
        keys = jax.random.split(jax.random.key(seed))
        inputs = {name: batch[name][:1] for name in ("encoder_input_tokens", "encoder_images")}
        inputs["decoder_input_tokens"] = np.zeros((1, 2), np.int32)
        variables = nn.meta.unbox(jax.jit(self.model.init)(keys[0], inputs))
        width = self.config.width
        state, table = jnp.zeros((1, 1, width)), jnp.zeros((1, width))
        heads = Heads(len(self.bin_ids)).init(keys[1], state, state, state, table, table, table)
        return {"model": variables["params"], "heads": heads["params"]}, variables["batch_stats"]

    def predict(
        self, params: Mapping[str, Any], statistics: Any, batch: Batch, train: bool
    ) -> tuple[dict[str, Array], Any]:
        """Computes the logits of `Heads`, and the new batch statistics."""
        inputs = {name: batch[name] for name in ("encoder_input_tokens", "encoder_images")}
        encoded, updates = self.model.apply(
            {"params": params["model"], "batch_stats": statistics},
            inputs,
            train,
            method="encode",
            mutable=["batch_stats"] if train else [],
        )
        length = batch["encoder_input_tokens"].shape[1]
        patches, tokens = encoded.hidden[:, :-length], encoded.hidden[:, -length:]
        embeddings = params["model"]["token_embedding"]["embedding"]
        logits = Heads(len(self.bin_ids)).apply(
            {"params": params["heads"]},
            patches,
            jnp.take_along_axis(patches, batch["patch_indices"][..., None], axis=1),
            jnp.take_along_axis(tokens, batch["text_ends"][..., None], axis=1),
            embeddings[jnp.asarray(self.name_ids)],
            embeddings[self.bin_ids.start : self.bin_ids.stop],
            embeddings,
        )
        return logits, updates.get("batch_stats", statistics)

    def loss(
        self, params: Mapping[str, Any], statistics: Any, batch: Batch
    ) -> tuple[Array, tuple[Any, dict[str, Array]]]:
        """Computes the loss; also the new batch statistics, and the loss of each kind of target."""
        logits, statistics = self.predict(params, statistics, batch, train=True)
        # Most patches show no object.
        shown = jnp.where(batch["patch_nouns"] < len(self.name_ids), 1.0, 0.3)
        losses = {
            "patch_nouns": _mean(_cross_entropy(logits, batch, "patch_nouns"), shown),
            "patch_boxes": _mean(_box_loss(logits, batch, "patch_bins"), batch["patch_weights"]),
            "counts": _mean(*_known(logits, batch, "counts")),
            "text_boxes": _mean(_box_loss(logits, batch, "text_bins"), batch["text_weights"]),
            "answers": _mean(*_known(logits, batch, "answers")),
        }
        weights = {"counts": 2.0, "patch_boxes": 0.5, "text_boxes": 0.5}
        return sum(weights.get(name, 1.0) * x for name, x in losses.items()), (statistics, losses)


def _cross_entropy(logits: Mapping[str, Array], batch: Batch, name: str) -> Array:
    targets = jnp.maximum(batch[name], 0)
    return optax.softmax_cross_entropy_with_integer_labels(logits[name], targets)


def _known(logits: Mapping[str, Array], batch: Batch, name: str) -> tuple[Array, Array]:
    return _cross_entropy(logits, batch, name), (batch[name] != NO_TARGET).astype(jnp.float32)


def _box_loss(logits: Mapping[str, Array], batch: Batch, name: str) -> Array:
    """Computes the divergence from a narrow normal distribution around each edge, [B, n]."""
    bins = jnp.arange(logits[name].shape[-1])
    distance = (bins - batch[name][..., None]) / _BIN_SPREAD
    targets = jax.nn.softmax(-0.5 * distance**2)
    return optax.kl_divergence(jax.nn.log_softmax(logits[name]), targets).mean(axis=-1)


def _mean(x: Array, weights: Array) -> Array:
    return (x * weights).sum() / jnp.maximum(weights.sum(), 1.0)


def learn(
    trainer: Trainer,
    stages: Sequence[tuple[int, Iterator[dict[str, np.ndarray]]]],
    learning_rate: float,
    seed: int,
    stage: Any,
) -> tuple[Any, Any]:
    """Trains on so many batches of each iterator.

    Args:
      trainer: of the model.
      stages: number of steps, and batches.
      learning_rate: the highest.
      seed: of the initial parameters.
      stage: shows the progress.

    Returns:
      Parameters and batch statistics.
    """
    steps = sum(number for number, _ in stages)
    optimizer = make_optimizer(steps, learning_rate, _END_RATE * learning_rate)

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params: Any, statistics: Any, moments: Any, batch: Batch) -> Any:
        gradient_of = jax.grad(trainer.loss, has_aux=True)
        gradients, (statistics, losses) = gradient_of(params, statistics, batch)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), statistics, moments, losses

    parts = (itertools.islice(batches, number) for number, batches in stages)
    examples = itertools.chain.from_iterable(parts)
    first = next(examples)
    params, statistics = trainer.initialise(first, seed)
    moments = optimizer.init(params)
    for number, batch in enumerate(itertools.chain([first], examples), 1):
        params, statistics, moments, _ = step(params, statistics, moments, batch)
        stage.update(number, steps)
    return params, statistics


def accuracies(
    trainer: Trainer,
    params: Any,
    statistics: Any,
    examples: Iterator[dict[str, np.ndarray]],
) -> dict[str, float]:
    """Computes shares of right predictions of patches with an object, counts, boxes and answers.

    Kinds without a target are left out. A box is right with an intersection over union of at
    least one half.
    """
    predict = jax.jit(lambda batch: trainer.predict(params, statistics, batch, train=False)[0])
    right: dict[str, float] = {}
    total: dict[str, float] = {}
    for batch in examples:
        found = {name: np.asarray(x).argmax(axis=-1) for name, x in predict(batch).items()}
        known = {
            "patch_nouns": batch["patch_nouns"] < len(trainer.name_ids),
            "counts": batch["counts"] != NO_TARGET,
            "answers": batch["answers"] != NO_TARGET,
        }
        correct = {name: found[name] == batch[name] for name in known}
        known["text_boxes"] = batch["text_weights"] > 0
        boxes = found["text_bins"][known["text_boxes"]].astype(np.float32)
        truth = batch["text_bins"][known["text_boxes"]]
        overlaps = iou(boxes, truth)
        for name, where in known.items():
            hits = correct[name][where] if name in correct else overlaps >= 0.5
            right[name] = right.get(name, 0.0) + float(hits.sum())
            total[name] = total.get(name, 0.0) + float(where.sum())
    return {name: right[name] / total[name] for name in right if total[name]}
