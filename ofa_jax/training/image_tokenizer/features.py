"""How alike two images look: the distance of their features in a trained ResNet.

Like LPIPS (Zhang et al. 2018, equation 1) without learned weights: the features of each place are
scaled to length 1, and the squared differences summed over channels, averaged over places and
summed over stages.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ofa_jax.checkpoints import load, storage, warm_start
from ofa_jax.interop import files, from_fairseq, resnet_file
from ofa_jax.model import OFAConfig, layout
from ofa_jax.model.resnet import ResNet
from ofa_jax.training.image_tokenizer.config import PerceptualFeatures

_EPSILON = 1e-10
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of torchvision's images."""
_TORCH_SUFFIXES = (".pt", ".pth", ".bin")


@dataclasses.dataclass(frozen=True)
class FeatureDistance:
    """The distance of images in the features of a ResNet.

    Attributes:
      config: of the model whose ResNet it is, without scanned or rematerialised layers.
      imagenet: whether pixels are normalised as torchvision does.
    """

    config: OFAConfig
    imagenet: bool = False

    def features(
        self, variables: Mapping[str, Any], pixels: Float[Array, "b h w 3"]
    ) -> list[Float[Array, "b rows columns channels"]]:
        """Returns what the stem and each stage compute of images in [-1, 1].

        Args:
          variables: {"params", "batch_stats"} of the ResNet.
          pixels: of the images.
        """
        if self.imagenet:
            pixels = ((pixels + 1) / 2 - jnp.asarray(_MEAN)) / jnp.asarray(_STD)
        last = [
            f"stage_{stage + 1}_block_{blocks - 1}"
            for stage, blocks in enumerate(self.config.resnet_layers)
        ]
        wanted = ["norm_stem", *last]
        _, found = ResNet(self.config).apply(
            variables,
            pixels,
            False,
            mutable=["intermediates"],
            capture_intermediates=lambda module, method: module.name in wanted,
        )
        values = [found["intermediates"][name]["__call__"][0] for name in wanted]
        return [jax.nn.relu(value) for value in values]

    def __call__(
        self,
        variables: Mapping[str, Any],
        one: Float[Array, "b h w 3"],
        other: Float[Array, "b h w 3"],
    ) -> Float[Array, " b"]:
        """Computes the distance of each pair of images in [-1, 1]."""
        pairs = zip(self.features(variables, one), self.features(variables, other), strict=True)
        return sum(
            (jnp.square(_unit(x) - _unit(y)).sum(-1).mean((1, 2)) for x, y in pairs),
            start=jnp.zeros(len(one)),
        )


def _unit(x: Float[Array, "*n channels"]) -> Float[Array, "*n channels"]:
    """Returns vectors scaled to length 1; finite also for vectors of zeros, as is the gradient."""
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + _EPSILON)


def load_features(given: PerceptualFeatures) -> tuple[FeatureDistance, dict[str, Any]]:
    """Loads the ResNet that a user gives.

    Returns:
      The distance, and the ResNet's {"params", "batch_stats"} of numpy arrays.

    Raises:
      FileNotFoundError, ValueError: there is none, or it is another one.
    """
    if given.path.endswith(_TORCH_SUFFIXES):
        config = _plain(getattr(OFAConfig, given.size)())
        variables = resnet_file.read(given.path, config)
        default = "half" if given.size == "scenes" else "imagenet"
    else:
        config, variables = _of_checkpoint(given.path)
        default = "half"
    imagenet = (given.normalization or default) == "imagenet"
    resnet = {
        part: jax.tree.map(np.asarray, variables[part]["encoder"]["resnet"])
        for part in ("params", "batch_stats")
    }
    return FeatureDistance(config, imagenet), resnet


def _of_checkpoint(path: str) -> tuple[OFAConfig, dict[str, Any]]:
    """Returns the plain configuration and the variables of a checkpoint's model."""
    config = load.load_config(path)
    if files.is_official(path):
        official = files.read(path)
        warm_start.log_weights(path, official)
        variables = from_fairseq(official.state_dict, config)
    else:
        variables = storage.load_numpy_variables(path, averaged=True)
    return _plain(config), layout.to_plain(variables, config)


def _plain(config: OFAConfig) -> OFAConfig:
    """Returns a configuration whose ResNet has a module for each block, in float32."""
    return config.replace(
        scan_layers=False, remat="none", dtype="float32", resnet_drop_path_rate=0.0
    )
