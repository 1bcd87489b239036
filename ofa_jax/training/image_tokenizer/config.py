"""Options of the quantiser, of the loss and of the perceptual features."""

import dataclasses
from typing import Annotated

from ofa_jax.model.config import SIZES
from ofa_jax.utils import options
from ofa_jax.utils.option_checks import checked

__all__ = ["GUMBEL", "NEAREST", "ImageTokenizerLoss", "PerceptualFeatures", "QuantizerConfig"]

GUMBEL, NEAREST = "gumbel", "nearest"


@checked
@dataclasses.dataclass(frozen=True)
class QuantizerConfig:
    """How a latent vector becomes a code in training, and how unused codes come back.

    Attributes:
      kind: "gumbel" draws codes from a Gumbel-softmax over learned scores (Jang et al. 2017), as
        the VQGAN of OFA does; "nearest" takes the code nearest to the latent vector (van den Oord
        et al. 2017).
      commitment: "nearest": weight of the loss that draws latent vectors to their codes.
      temperature: "gumbel": at the start.
      end_temperature: "gumbel": after `anneal_steps`; the temperature falls exponentially.
      anneal_steps: 0 for `temperature` throughout.
      kl_weight: "gumbel": weight of the divergence of the codes' probabilities from uniform ones.
      straight_through: "gumbel": whether the decoder sees the vector of the drawn code, as it does
        after training, instead of the mean of all vectors by their probabilities.
      revive_period: steps between two revivals of unused codes; 0 for none.
      revive_below: a code counts as unused if it is drawn less often than this share of what it
        would be if all codes were drawn equally often.
      use_decay: decay of the moving average of how often each code is drawn.
    """

    kind: Annotated[str, options.OneOf((GUMBEL, NEAREST))] = GUMBEL
    commitment: options.NonNegative = 0.25
    temperature: options.Positive = 1.0
    end_temperature: options.Positive = 1.0
    anneal_steps: options.Natural = 0
    kl_weight: options.NonNegative = 1e-8
    straight_through: bool = True
    revive_period: options.Natural = 100
    revive_below: options.Share = 0.1
    use_decay: options.Rate = 0.99


@checked
@dataclasses.dataclass(frozen=True)
class ImageTokenizerLoss:
    """Weights of the parts of the loss; the defaults are those of the VQGAN paper and its code.

    Attributes:
      absolute: of the mean absolute error of pixels in [-1, 1].
      squared: of their mean squared error, which PSNR measures.
      perceptual: of the distance of features; needs `train_image_tokenizer.features`.
      quantizer: of the loss of the quantiser.
      adversarial: of the loss against the discriminator.
      adaptive: whether `adversarial` is multiplied by the ratio of the gradients of reconstruction
        and adversarial loss at the last layer of the decoder (equation 7 of the paper).
      discriminator_start: the step from which on there is a discriminator; None for none.
      discriminator_layers: convolutions with stride 2.
      discriminator_width: channels of the first one.
    """

    absolute: options.NonNegative = 1.0
    squared: options.NonNegative = 0.0
    perceptual: options.NonNegative = 1.0
    quantizer: options.NonNegative = 1.0
    adversarial: options.NonNegative = 0.8
    adaptive: bool = True
    discriminator_start: options.Natural | None = None
    discriminator_layers: options.Layers = 3
    discriminator_width: options.Count = 64

    def __post_init__(self) -> None:
        """Raises ValueError if nothing compares the images."""
        if not self.absolute + self.squared + self.perceptual:
            raise ValueError(
                "ImageTokenizerLoss.absolute, squared and perceptual are all 0, so that nothing is "
                "reconstructed: give one of them a weight."
            )


@checked
@dataclasses.dataclass(frozen=True)
class PerceptualFeatures:
    """A trained ResNet whose features tell how alike two images look.

    Attributes:
      path: a ResNet as torchvision saves it (`.pt`, `.pth`, `.bin`), or the folder of a run or of
        a checkpoint of OFA, whose ResNet is taken.
      size: "base" and so on: the size of the model whose ResNet a file of torchvision has (base has
        ResNet-101, large ResNet-152, medium ResNet-101, tiny ResNet-50); not for a checkpoint.
      normalization: of the pixels: "imagenet" for a ResNet as torchvision trains it, "half" for one
        that was trained by OFA. When None, "half" for checkpoints and `size` "scenes".
    """

    path: options.Path
    size: Annotated[str, options.OneOf(SIZES)] = "base"
    normalization: Annotated[str, options.OneOf(("imagenet", "half"))] | None = None
