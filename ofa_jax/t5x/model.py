"""OFA as a `t5x.models.BaseTransformerModel`.

One stream a step, in which all tokens weigh the same, or those of each loss group together (see
`mixtures`). The running statistics of batch norm are t5x's `flax_mutables`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import seqio
from etils import epath
from flax.linen import partitioning as flax_partitioning
from jaxtyping import Array, Float, Int, PRNGKeyArray
from t5x import metrics as t5x_metrics
from t5x import models, optimizers

from ofa_jax.checkpoints import storage
from ofa_jax.data.features import Stream
from ofa_jax.decoding import DecodingConfig, make_decoder
from ofa_jax.model import OFA, OFAConfig
from ofa_jax.t5x import mixtures
from ofa_jax.t5x.settings import feature_converter
from ofa_jax.training.build import make_processor
from ofa_jax.training.losses import LossConfig, TokenLosses, grouped_loss, token_losses, total

__all__ = ["OFAModel"]

Batch = Mapping[str, Array]


class OFAModel(models.BaseTransformerModel):
    """OFA for t5x's trainer, evaluator, inference and `InteractiveModel`."""

    def __init__(
        self,
        config: OFAConfig,
        stream: Stream,
        optimizer_def: optimizers.OptimizerDefType,
        loss: LossConfig | None = None,
        decoding: DecodingConfig | None = None,
        model_dir: str | None = None,
    ):
        """Makes a model for the task or mixture of a stream.

        Args:
          config: of the model; its vocab_size is that of the task. Choose `vocab_multiple` as a
            multiple of the mesh's axis `model`, which splits the embedding.
          stream: task or mixture, and all shapes.
          optimizer_def: of t5x, such as `adamw`.
          loss: options of the loss; plain cross-entropy when None.
          decoding: how outputs are generated; greedily, as long as the stream's targets, when None.
          model_dir: where model.json and vocabulary are written, for `ofa-convert` and those who
            use the result; nowhere when None.

        Raises:
          ValueError: the task is not one of ours, or options do not fit each other.
        """
        features = seqio.get_mixture_or_task(stream.mixture_or_task_name).output_features
        if not {"inputs", "targets"} <= set(features):
            raise ValueError(
                f"{stream.mixture_or_task_name} has no features inputs and targets: give a task of "
                "this project, or one that has them."
            )
        config = config.replace(vocab_size=features["targets"].vocabulary.vocab_size)
        self.config, self.loss = config, loss or LossConfig(pad_id=config.pad_id)
        if self.loss.rdrop_alpha or self.loss.drop_worst_ratio:
            raise ValueError(
                "LossConfig.rdrop_alpha and drop_worst_ratio need two passes or the number of the "
                "step, which t5x does not give its models: leave them at 0, or use ofa_jax.train."
            )
        lengths = stream.task_feature_lengths
        self.decoding = decoding or DecodingConfig(beam_size=1, max_length=lengths["targets"] - 1)
        self.decoding.check(config)
        if self.decoding.method != "beam" or self.decoding.is_guided:
            raise ValueError(
                "t5x decodes with beams here: set DecodingConfig.method = 'beam' and leave "
                "guidance_scale at 1."
            )
        self.groups = mixtures.group_names(stream.mixture_or_task_name)
        self.FEATURE_CONVERTER_CLS = functools.partial(feature_converter, stream)
        if model_dir is not None:
            _describe(model_dir, config, stream, features["targets"].vocabulary)
        super().__init__(
            OFA(config),
            features["inputs"].vocabulary,
            features["targets"].vocabulary,
            optimizer_def,
        )

    def get_initial_variables(
        self,
        rng: PRNGKeyArray,
        input_shapes: Mapping[str, Any],
        input_types: Mapping[str, Any] | None = None,
    ) -> flax.core.FrozenDict[str, Any]:
        """Returns new variables, and their logical axes under `params_axes` and so on."""
        del input_shapes, input_types  # `OFA.init` reaches every parameter with any batch
        tokens = jnp.zeros((1, 2), jnp.int32)
        batch = {"encoder_input_tokens": tokens, "decoder_input_tokens": tokens}
        boxed = self.module.init(rng, batch)
        axes = {f"{name}_axes": logical_axes(tree) for name, tree in boxed.items()}
        return flax.core.freeze(nn.meta.unbox(boxed) | axes)

    def _apply(
        self, params: Any, stats: Any, batch: Batch, rng: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "b t v"], Any]:
        """Returns logits and batch statistics, new ones in training (with a key for dropout)."""
        variables = {"params": params, **flax.core.unfreeze(stats or {})}
        if rng is None:
            return self.module.apply(variables, batch), stats
        logits, updated = self.module.apply(
            variables, batch, train=True, mutable=["batch_stats"], rngs={"dropout": rng}
        )
        # Frozen batch norm updates nothing.
        return logits, flax.core.freeze(updated) if "batch_stats" in updated else stats

    def _compute_logits(
        self, params: Any, batch: Batch, dropout_rng: PRNGKeyArray | None = None
    ) -> Array:
        """Raises NotImplementedError: logits need the batch statistics, see `loss_fn`."""
        raise NotImplementedError("OFAModel computes logits in loss_fn, with batch statistics.")

    def _token_losses(self, logits: Array, batch: Batch, loss: LossConfig) -> TokenLosses:
        targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
        return token_losses(logits, targets, weights, loss, vocab_size=self.config.vocab_size)

    def loss_fn(
        self,
        params: Any,
        batch: Batch,
        dropout_rng: PRNGKeyArray | None,
        flax_mutables: Any = None,
    ) -> tuple[Float[Array, ""], tuple[Any, Any]]:
        """Returns the loss per token, t5x's metrics and the new batch statistics.

        In a grouped mixture the loss is the sum of the groups' losses per token, and among the
        metrics; t5x's own metrics are those of all tokens.
        """
        logits, stats = self._apply(params, flax_mutables, batch, dropout_rng)
        tokens = self._token_losses(logits, batch, self.loss)
        summed, _, number = total([tokens], self.loss, 0)
        pad = self.config.pad_id
        metrics = self._compute_metrics(
            logits=logits,
            targets=batch["decoder_target_tokens"],
            mask=tokens.scored.astype(jnp.float32),
            loss=summed,
            segment_ids={
                "encoder": batch["encoder_input_tokens"] != pad,
                "decoder": batch["decoder_target_tokens"] != pad,
            },
        )
        if mixtures.LOSS_GROUPS not in batch or not self.groups:
            return summed / jnp.maximum(number, 1), (metrics, stats)
        loss = self._loss_of_groups(tokens, batch[mixtures.LOSS_GROUPS])
        metrics["loss_of_groups"] = t5x_metrics.AveragePerStep.from_model_output(loss)
        return loss, (metrics, stats)

    def _loss_of_groups(self, tokens: TokenLosses, groups: Int[Array, " b"]) -> Float[Array, ""]:
        """Returns the sum of the losses per token of the groups, as `grouped_loss` defines it."""
        parts = {}
        for number, name in enumerate(self.groups):
            own = tokens.scored & (groups == number)[:, None]
            parts[name] = TokenLosses(
                jnp.where(own, tokens.loss, 0), jnp.where(own, tokens.nll, 0), None, own
            )
        return grouped_loss(parts, {name: name for name in parts}, self.loss, 0)

    def eval_fn(
        self, params: Any, batch: Batch, flax_mutables: Any = None
    ) -> tuple[Float[Array, ""], Any]:
        """Returns loss and metrics without dropout, by the running statistics."""
        loss, (metrics, _) = self.loss_fn(params, batch, None, flax_mutables)
        return loss, metrics

    def score_batch(
        self,
        params: Any,
        batch: Batch,
        flax_mutables: Any = None,
        return_intermediates: bool = False,
    ) -> Any:
        """Returns the log-probability of each example's targets, without label smoothing."""
        logits, _ = self._apply(params, flax_mutables, batch)
        plain = dataclasses.replace(self.loss, label_smoothing=0.0)
        scores = -self._token_losses(logits, batch, plain).nll.sum(-1)
        return (scores, {}) if return_intermediates else scores

    def predict_batch_with_aux(
        self,
        params: Any,
        batch: Batch,
        rng: PRNGKeyArray | None = None,
        flax_mutables: Any = None,
    ) -> tuple[Int[Array, "b t"], dict[str, Array]]:
        """Returns the best output of each example, ended by eos, and its score."""
        del rng
        variables = {"params": params, **flax.core.unfreeze(flax_mutables or {})}
        found = make_decoder(self.module, self.decoding)(variables, batch)
        return found.tokens[:, 0], {"scores": found.scores[:, 0]}

    def predict_batch(
        self,
        params: Any,
        batch: Batch,
        rng: PRNGKeyArray | None = None,
        flax_mutables: Any = None,
    ) -> Int[Array, "b t"]:
        """Returns the best output of each example; see `predict_batch_with_aux`."""
        return self.predict_batch_with_aux(params, batch, rng, flax_mutables)[0]


def _describe(
    model_dir: str, config: OFAConfig, stream: Stream, vocabulary: seqio.Vocabulary
) -> None:
    """Writes what a run directory of ours has beside its checkpoints."""
    if jax.process_index():
        return
    epath.Path(model_dir).mkdir(parents=True, exist_ok=True)
    storage.write_model_config(model_dir, config)
    processor = make_processor([stream], getattr(vocabulary, "settings", None))
    if processor is not None:
        processor.save(model_dir)


def logical_axes(boxed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the logical axes of boxed variables as t5x's `params_axes` have them."""
    flat = flax.traverse_util.flatten_dict(dict(boxed))
    axes = {}
    for path, leaf in flat.items():
        names = leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else (None,) * leaf.ndim
        name = (*path[:-1], f"{path[-1]}_axes")
        axes[name] = flax_partitioning.AxisMetadata(names=tuple(names))
    return flax.traverse_util.unflatten_dict(axes)
