"""The state and the training step of a VQGAN: one update of the network, and of its discriminator.

    pixels ─▶ encoder ─▶ codes ─▶ decoder ─▶ reconstruction ─▶ pixel, perceptual, adversarial loss

The backward pass through the network runs once: the gradients of all losses are added up at the
reconstruction. The ratio of equation 7 needs the last layer alone, which is linear.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ofa_jax.sharding import Partitioner, TrainState
from ofa_jax.tokenizers.vqgan import Network, VQGANConfig, unfold_blocks
from ofa_jax.training.image_tokenizer import discriminator, quantizers
from ofa_jax.training.image_tokenizer.config import GUMBEL, ImageTokenizerLoss, QuantizerConfig
from ofa_jax.training.image_tokenizer.features import FeatureDistance
from ofa_jax.training.image_tokenizer.quantizers import Quantized
from ofa_jax.training.metrics import TaskSums
from ofa_jax.training.optimizer import OptimizerConfig, learning_rate_schedule, make_optimizer
from ofa_jax.training.step import StepMetrics, StreamBatches, TrainStep

NETWORK, DISCRIMINATOR = "network", "discriminator"
"""Keys of the parameters."""
CODE_USE, FEATURES = "code_use", "features"
"""Keys of `batch_stats`: the moving average of the use of each code, and the ResNet."""
STREAM, IMAGES = "images", "encoder_images"
"""The stream, and its array of images uint8 [B, H, W, 3]."""
TERMS = ("reconstruction", "perceptual", "quantizer", "adversarial", "discriminator")
"""Parts of the loss, in the order of `task_names`."""


@dataclasses.dataclass(frozen=True)
class TokenizerProgram:
    """The networks, their losses and optimisers, and the steps made of them.

    Attributes:
      config: sizes of the VQGAN.
      quantizer: options of the quantiser.
      loss: weights of the loss.
      optimizer: of the VQGAN and, with moments of its own, of the discriminator.
      features: the perceptual distance; None without one.
      image_size: side of the training images in pixels.
      seed: of the initial parameters and of the drawn codes.
    """

    config: VQGANConfig
    quantizer: QuantizerConfig
    loss: ImageTokenizerLoss
    optimizer: OptimizerConfig
    features: FeatureDistance | None
    image_size: int
    seed: int = 0

    @property
    def network(self) -> Network:
        """The VQGAN."""
        return Network(self.config)

    @property
    def discriminator(self) -> discriminator.Discriminator:
        """The discriminator."""
        loss = self.loss
        return discriminator.Discriminator(loss.discriminator_layers, loss.discriminator_width)

    @property
    def has_discriminator(self) -> bool:
        """Whether there is a discriminator from some step on."""
        return self.loss.discriminator_start is not None

    # ------------------------------------------------------------------------------------- state

    def create_state(self, key: jax.Array, features: Any, start: Any = None) -> TrainState:
        """Makes the state of step 0.

        Args:
          key: of the parameters.
          features: variables of the ResNet; {} without one.
          start: parameters of a VQGAN to begin with; new ones when None.
        """
        keys = jax.random.split(key)
        side = self.config.pixels_per_code
        network = start
        if network is None:
            network = self.network.init(keys[0], jnp.zeros((1, side, side, 3)))["params"]
        params = {NETWORK: quantizers.with_tied_scores(network, self.quantizer)}
        if self.has_discriminator:
            pixels = jnp.zeros((1, self.image_size, self.image_size, 3))
            params[DISCRIMINATOR] = self.discriminator.init(keys[1], pixels)["params"]
        optimizer = make_optimizer(self.optimizer)
        use = quantizers.initial_use(self.quantizer, self.config.num_codes, start is None)
        averaged = self.optimizer.ema_decay is not None
        return TrainState(
            step=jnp.int32(0),
            skipped_steps=jnp.int32(0),
            params=params,
            batch_stats={CODE_USE: use, FEATURES: features},
            opt_state={name: optimizer.init(part) for name, part in params.items()},
            # A copy, because each step donates the parameters' buffers.
            ema_params=jax.tree.map(jnp.copy, {NETWORK: params[NETWORK]}) if averaged else None,
        )

    def abstract_state(self, features: Any, partitioner: Partitioner) -> TrainState:
        """Returns shapes and shardings of the state, which is the same on every device."""
        shapes = jax.eval_shape(
            lambda key: self.create_state(key, features), jax.eval_shape(lambda: jax.random.key(0))
        )
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=partitioner.replicated),
            shapes,
        )

    def new_state(self, features: Any, abstract: TrainState, start: Any = None) -> TrainState:
        """Returns the state of step 0 on the devices; arguments as of `create_state`."""
        make = jax.jit(
            self.create_state, out_shardings=jax.tree.map(lambda x: x.sharding, abstract)
        )
        return make(jax.random.key(self.seed), features, start)

    # ------------------------------------------------------------------------------ forward pass

    def forward(
        self, network: Any, pixels: Float[Array, "b h w 3"], key: jax.Array, step: jax.Array
    ) -> tuple[Float[Array, "b h w 3"], Quantized, dict[str, jax.Array]]:
        """Reconstructs images as in training.

        Args:
          network: parameters of the VQGAN.
          pixels: in [-1, 1].
          key: of the drawn codes.
          step: sets the temperature.

        Returns:
          The reconstruction, the codes, and "latents" [B, h, w, code_width] and "last"
          [B, H, W, C], the input of the last layer.
        """

        def run(module: Network, pixels: jax.Array) -> tuple[jax.Array, Quantized, jax.Array]:
            latents = module.quant_conv(module.encoder(pixels))
            table = network["quantize"]["embed"]["embedding"]
            if self.quantizer.kind == GUMBEL:
                tau = quantizers.temperature(self.quantizer, step)
                scores = module.quantize(latents)
                quantized = quantizers.gumbel(scores, table, key, tau, self.quantizer)
            else:
                quantized = quantizers.nearest(latents, table, self.quantizer)
            return module.decoder(module.post_quant_conv(quantized.vectors)), quantized, latents

        (made, quantized, latents), found = self.network.apply(
            {"params": network},
            pixels,
            method=run,
            mutable=["intermediates"],
            capture_intermediates=lambda module, method: module.name == "norm_out",
        )
        (normal,) = found["intermediates"]["decoder"]["norm_out"]["__call__"]
        return made, quantized, {"latents": latents, "last": jax.nn.swish(normal)}

    def compare(
        self, made: Float[Array, "b h w 3"], pixels: Float[Array, "b h w 3"], features: Any
    ) -> tuple[Float[Array, ""], dict[str, jax.Array]]:
        """Computes the reconstruction loss, and its parts without the weight of `perceptual`."""
        weights = self.loss
        pixel = weights.absolute * jnp.abs(made - pixels).mean()
        pixel += weights.squared * jnp.square(made - pixels).mean()
        parts = {"reconstruction": pixel}
        if self.features is None or not weights.perceptual:
            return pixel, parts
        parts["perceptual"] = self.features(features, made, pixels).mean()
        return pixel + weights.perceptual * parts["perceptual"], parts

    def adversarial(
        self,
        state: TrainState,
        made: Float[Array, "b h w 3"],
        last: Float[Array, "b h w channels"],
        gradient: Float[Array, "b h w 3"],
    ) -> tuple[Float[Array, ""], Float[Array, "b h w 3"]]:
        """Computes the loss against the discriminator and its weighted gradient at the images.

        Both are zeros before `discriminator_start`; the discriminator is not computed then.

        Args:
          state: has the discriminator.
          made: the reconstruction.
          last: input of the last layer, which made it.
          gradient: of the reconstruction loss at the reconstruction.
        """
        if not self.has_discriminator or not self.loss.adversarial:
            return jnp.float32(0), jnp.zeros_like(made)

        def compute() -> tuple[jax.Array, jax.Array]:
            def loss_of(images: jax.Array) -> jax.Array:
                params = {"params": state.params[DISCRIMINATOR]}
                scores = jnp.asarray(self.discriminator.apply(params, images))
                return discriminator.generator_loss(scores)

            loss, own = jax.value_and_grad(loss_of)(made)
            weight = jnp.float32(self.loss.adversarial)
            if self.loss.adaptive:
                kernel = state.params[NETWORK]["decoder"]["conv_out"]["kernel"]
                _, pull_back = jax.vjp(
                    lambda k: unfold_blocks(_last_layer(last, k), self.config.block_size), kernel
                )
                weight *= discriminator.adaptive_weight(*pull_back(gradient), *pull_back(own))
            return loss, weight * own

        return jax.lax.cond(
            self._is_adversarial(state.step),
            compute,
            lambda: (jnp.float32(0), jnp.zeros_like(made)),
        )

    def _is_adversarial(self, step: jax.Array) -> jax.Array:
        """Returns whether the discriminator takes part in the step after `step` others."""
        assert self.loss.discriminator_start is not None
        return step >= self.loss.discriminator_start

    # --------------------------------------------------------------------------------- the steps

    def make_train_step(self) -> TrainStep:
        """Makes the training step; the caller jits it with the state donated.

        Returns:
          (state, {"images": batch}) -> (state, StepMetrics). A step whose loss or gradient is not
          finite changes nothing but its counters.
        """
        optimizer, schedule = make_optimizer(self.optimizer), learning_rate_schedule(self.optimizer)

        def train_step(state: TrainState, batches: StreamBatches) -> tuple[TrainState, StepMetrics]:
            pixels = to_pixels(batches[STREAM][IMAGES])
            key = jax.random.fold_in(jax.random.key(self.seed), state.step)
            draw, revival = jax.random.split(key)
            features = state.batch_stats[FEATURES]

            def forward(network: Any) -> Any:
                made, quantized, inner = self.forward(network, pixels, draw, state.step)
                return (made, quantized.loss), (quantized.codes, inner)

            (made, quantizer_loss), pull_back, (codes, inner) = jax.vjp(
                forward, state.params[NETWORK], has_aux=True
            )
            compare = jax.value_and_grad(self.compare, has_aux=True)
            (loss, parts), gradient = compare(made, pixels, features)
            adversarial, own = self.adversarial(state, made, inner["last"], gradient)
            (gradients,) = pull_back((gradient + own, jnp.float32(self.loss.quantizer)))
            loss += self.loss.quantizer * quantizer_loss
            norm = optax.tree.norm(gradients)

            updates, moments = optimizer.update(
                gradients, state.opt_state[NETWORK], state.params[NETWORK]
            )
            network = optax.apply_updates(state.params[NETWORK], updates)
            network = quantizers.with_tied_scores(network, self.quantizer)
            params, opt_state = {NETWORK: network}, {NETWORK: moments}
            tell_apart = jnp.float32(0)
            if self.has_discriminator:
                tell_apart, params[DISCRIMINATOR], opt_state[DISCRIMINATOR] = (
                    self._update_discriminator(state, pixels, made, optimizer)
                )
            new = self._finish(state, params, opt_state, codes, inner["latents"], revival)
            finite = jnp.isfinite(loss + adversarial + tell_apart) & jnp.isfinite(norm)
            new = _if_finite(finite, new, state)
            parts |= {"quantizer": quantizer_loss}
            parts |= {"adversarial": adversarial, "discriminator": tell_apart}
            rate = jnp.asarray(schedule(state.step - state.skipped_steps), jnp.float32)
            sums = self._sums(parts, state.step, codes.size)
            return new, StepMetrics(loss, norm, optax.tree.norm(new.params), rate, sums)

        return train_step

    def _update_discriminator(
        self,
        state: TrainState,
        pixels: jax.Array,
        made: jax.Array,
        optimizer: optax.GradientTransformation,
    ) -> tuple[jax.Array, Any, Any]:
        """Returns loss, parameters and moments of the discriminator after an update."""
        params, moments = state.params[DISCRIMINATOR], state.opt_state[DISCRIMINATOR]

        def loss_of(params: Any) -> jax.Array:
            true, other = (
                jnp.asarray(
                    self.discriminator.apply({"params": params}, jax.lax.stop_gradient(images))
                )
                for images in (pixels, made)
            )
            return discriminator.discriminator_loss(true, other)

        def update() -> tuple[jax.Array, Any, Any]:
            loss, gradients = jax.value_and_grad(loss_of)(params)
            updates, new_moments = optimizer.update(gradients, moments, params)
            return loss, optax.apply_updates(params, updates), new_moments

        return jax.lax.cond(
            self._is_adversarial(state.step), update, lambda: (jnp.float32(0), params, moments)
        )

    def _finish(
        self,
        state: TrainState,
        params: dict[str, Any],
        opt_state: dict[str, Any],
        codes: jax.Array,
        latents: jax.Array,
        key: jax.Array,
    ) -> TrainState:
        """Returns the state after an update: averages made, unused codes replaced."""
        averaged = None
        if self.optimizer.ema_decay is not None:
            updates = state.step - state.skipped_steps
            decay = jnp.where(
                updates < self.optimizer.ema_start, 0.0, jnp.float32(self.optimizer.ema_decay)
            )
            averaged = optax.incremental_update(
                params[NETWORK], state.ema_params[NETWORK], 1 - decay
            )
            averaged = quantizers.with_tied_scores(averaged, self.quantizer)
        use = quantizers.updated_use(state.batch_stats[CODE_USE], codes, self.quantizer)
        dead = quantizers.unused(use, state.step, self.quantizer)
        arguments = (dead, latents, codes, key, self.quantizer)
        params = {**params, NETWORK: quantizers.revive(params[NETWORK], *arguments)}
        if averaged is not None:
            averaged = {NETWORK: quantizers.revive(averaged, *arguments)}
        # Time to be used before the next revival.
        use = jnp.where(dead, 1 / len(use), use)
        return TrainState(
            step=state.step + 1,
            skipped_steps=state.skipped_steps,
            params=params,
            batch_stats={**state.batch_stats, CODE_USE: use},
            opt_state=opt_state,
            ema_params=averaged,
        )

    def _sums(self, parts: Mapping[str, jax.Array], step: jax.Array, codes: int) -> TaskSums:
        """Returns the parts of the loss as the loop logs them; those not computed have no tokens.

        The codes of the batch take the place of target tokens, and are shared by the parts.
        """
        known = [float(term in parts) for term in TERMS]
        if self.has_discriminator:
            on = self._is_adversarial(step).astype(jnp.float32)
        else:
            on = jnp.float32(0)
        there = jnp.stack(
            [
                on if term in ("adversarial", "discriminator") else jnp.float32(is_known)
                for term, is_known in zip(TERMS, known, strict=True)
            ]
        )
        tokens = codes * there / there.sum()
        values = jnp.stack([parts.get(term, jnp.float32(0)) for term in TERMS])
        nothing = jnp.zeros_like(tokens)
        return TaskSums(values * tokens, tokens, nothing, nothing)


def to_pixels(images: Any) -> Float[Array, "b h w 3"]:
    """Scales uint8 images to [-1, 1], as the VQGAN takes them."""
    return jnp.asarray(images).astype(jnp.float32) / 255 * 2 - 1


def _last_layer(
    x: Float[Array, "b h w channels"], kernel: Float[Array, "3 3 channels out"]
) -> Float[Array, "b h w out"]:
    """Computes the decoder's last convolution without its bias."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _if_finite(finite: jax.Array, new: TrainState, old: TrainState) -> TrainState:
    """Returns the new state, or the old one with one more step, which was skipped."""
    kept = dataclasses.replace(old, step=new.step, skipped_steps=old.skipped_steps + 1)
    return jax.tree.map(lambda x, y: jnp.where(finite, x, y), new, kept)


def network_of(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a VQGAN's parameters as numpy arrays, from the variables of a state."""
    return jax.tree.map(np.asarray, dict(variables["params"][NETWORK]))
