"""ConvNeXt-T, a convolutional network of 28,589,128 parameters that names a picture: 224x224 frame.

Architecture and names: `convnext_tiny` of huggingface/pytorch-image-models (Apache-2.0), in timm/models/convnext.py;
Liu et al., "A ConvNet for the 2020s", arXiv 2201.03545. Modules and parameters carry timm's names
("stages.1.blocks.2.conv_dw"), so its state dict maps onto the params name by name.
"""

from __future__ import annotations

from flax import linen as nn
from jaxtyping import Array, Float, Float32, UInt8

from deltajax.models._classifier import normalised
from deltajax.models.imagenet import CLASSES, imagenet_model

EPS = 1e-6  # of layer norm


class ConvNeXt(nn.Module):
    """Logits of the thousand classes, from uint8 RGB frames of any size from 32x32 on.

    Attributes:
        depths: blocks in each stage.
        widths: channels of each stage.
    """

    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)

    @nn.compact
    def __call__(self, frame: UInt8[Array, "*batch height width 3"]) -> Float32[Array, "*batch 1000"]:
        x = nn.Conv(self.widths[0], (4, 4), 4, padding="VALID", name="stem.0")(normalised(frame))
        x = nn.LayerNorm(EPS, name="stem.1")(x)
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            if stage > 0:
                x = nn.LayerNorm(EPS, name=f"stages.{stage}.downsample.0")(x)
                x = nn.Conv(width, (2, 2), 2, padding="VALID", name=f"stages.{stage}.downsample.1")(x)
            for block in range(depth):
                x = Block(name=f"stages.{stage}.blocks.{block}")(x)
        x = nn.LayerNorm(EPS, name="head.norm")(x.mean(axis=(1, 2)))
        return nn.Dense(len(CLASSES), name="head.fc")(x).reshape(*frame.shape[:-3], len(CLASSES))


class Block(nn.Module):
    """A depthwise 7x7 convolution, layer norm, two dense layers on each position; scaled, and added to what came in."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        width = x.shape[-1]
        y = nn.Conv(width, (7, 7), padding=3, feature_group_count=width, name="conv_dw")(x)
        y = nn.Dense(4 * width, name="mlp.fc1")(nn.LayerNorm(EPS, name="norm")(y))
        y = nn.Dense(width, name="mlp.fc2")(nn.gelu(y, approximate=False))
        return x + self.param("gamma", nn.initializers.constant(1e-6), (width,)) * y


MODEL = imagenet_model(
    "convnext-t",
    ConvNeXt(),
    "timm, convnext_tiny.fb_in1k",
    "https://huggingface.co/timm/convnext_tiny.fb_in1k/resolve/main/model.safetensors",
)
