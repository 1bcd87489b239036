"""Trains a VQGAN, the image tokenizer of OFA, with the loop of pretraining.

| module | contents |
| --- | --- |
| `config` | `QuantizerConfig`, `ImageTokenizerLoss`, `PerceptualFeatures` |
| `quantizers` | Gumbel and nearest codes with straight-through gradients; revival of unused codes |
| `features` | the perceptual distance, over features of a ResNet |
| `discriminator` | a discriminator of patches, and its hinge losses |
| `step` | state, loss and training step |
| `batches` | images of a data set as batches |
| `evaluation` | PSNR, SSIM, distance of features and use of codes, with images |
| `build` | builds a run of all this, and exports what it has trained |

Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis" (arXiv 2012.09841).
"""
