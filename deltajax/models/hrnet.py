"""HRNet-W32, a network of 41,232,680 parameters that names a picture: 224x224 frame, four resolutions side by side.

Architecture and names: `hrnet_w32` of huggingface/pytorch-image-models (Apache-2.0), in timm/models/hrnet.py and
timm/models/resnet.py; Wang et al., "Deep High-Resolution Representation Learning for Visual Recognition", arXiv
1908.07919. Modules carry timm's names ("stage3.1.fuse_layers.0.2"), so its state dict maps onto the params name by
name.
"""

from __future__ import annotations

from flax import linen as nn
from jaxtyping import Array, Float, Float32, UInt8

from deltajax.models._classifier import normalised
from deltajax.models._torch_layers import conv, conv_norm, norm_name
from deltajax.models.imagenet import CLASSES, imagenet_model

STRIDE = 32  # of the coarsest map: the sides of a frame are multiples of it
STEM = 64  # channels before and inside the first stage
EXPANSION = 4  # how many times more channels leave a bottleneck than it has inside
HEAD = (32, 64, 128, 256)  # channels inside the head's bottlenecks, one for each resolution
FEATURES = 2048


class HRNet(nn.Module):
    """Logits of the thousand classes, from uint8 RGB frames.

    Attributes:
        widths: channels at a quarter, an eighth, a sixteenth and a 32nd of the frame's sides.
        exchanges: how often the maps are fused in the stages with two, three and four of them.
        blocks: residual blocks on each map before each of those; as many bottlenecks in the first stage.

    Raises:
        ValueError: a side of the frame is no multiple of 32.
    """

    widths: tuple[int, int, int, int] = (32, 64, 128, 256)
    exchanges: tuple[int, int, int] = (1, 4, 3)
    blocks: int = 4

    @nn.compact
    def __call__(self, frame: UInt8[Array, "*batch height width 3"]) -> Float32[Array, "*batch 1000"]:
        *batch, height, width, _ = frame.shape
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"`frame` has shape {frame.shape}; its height and width must be multiples of {STRIDE}")
        x = nn.relu(conv_norm("conv1", normalised(frame), STEM, kernel=3, stride=2))
        x = nn.relu(conv_norm("conv2", x, STEM, kernel=3, stride=2))
        for number in range(self.blocks):
            x = Bottleneck(STEM, name=f"layer1.{number}")(x)
        maps = [x]
        for stage, exchanges in enumerate(self.exchanges, start=2):
            maps = self._one_more(f"transition{stage - 1}", maps)
            for number in range(exchanges):
                maps = Exchange(self.blocks, name=f"stage{stage}.{number}")(maps)
        wide = [
            Bottleneck(width, name=f"incre_modules.{number}.0")(x)
            for number, (x, width) in enumerate(zip(maps, HEAD, strict=True))
        ]
        x = wide[0]
        for number, coarser in enumerate(wide[1:]):
            x = coarser + _biased(f"downsamp_modules.{number}.0", x, coarser.shape[-1], kernel=3, stride=2)
        x = _biased("final_layer.0", x, FEATURES, kernel=1, stride=1)
        return nn.Dense(len(CLASSES), name="classifier")(x.mean(axis=(1, 2))).reshape(*batch, len(CLASSES))

    def _one_more(self, name: str, maps: list[Array]) -> list[Array]:
        """The maps with the widths that they shall have, and one of half the size, made of the last."""
        *same, new = self.widths[: len(maps) + 1]
        fitted = [
            x if x.shape[-1] == width else nn.relu(conv_norm(f"{name}.{number}.0", x, width, kernel=3))
            for number, (x, width) in enumerate(zip(maps, same, strict=True))
        ]
        return [*fitted, nn.relu(conv_norm(f"{name}.{len(maps)}.0.0", maps[-1], new, kernel=3, stride=2))]


class Exchange(nn.Module):
    """Residual blocks on each map, then each becomes the sum of all of them, brought to its size and width.

    Attributes:
        blocks: on each map.
    """

    blocks: int

    @nn.compact
    def __call__(self, maps: list[Array]) -> list[Array]:
        maps = list(maps)
        for number in range(len(maps)):
            for block in range(self.blocks):
                maps[number] = BasicBlock(name=f"branches.{number}.{block}")(maps[number])
        sums = []
        for target in range(len(maps)):
            first, *others = (self._fitted(maps, source, target) for source in range(len(maps)))
            sums.append(nn.relu(sum(others, first)))
        return sums

    def _fitted(self, maps: list[Array], source: int, target: int) -> Float[Array, "n h w c"]:
        """Map `source` in the size and width of map `target`: by 3x3 convolutions of stride 2, or 1x1 and repeating."""
        x, width, name = maps[source], maps[target].shape[-1], f"fuse_layers.{target}.{source}"
        if source > target:
            x, times = conv_norm(f"{name}.0", x, width), 2 ** (source - target)
            return x.repeat(times, axis=1).repeat(times, axis=2)
        for number in range(target - source):
            last = number == target - source - 1
            x = conv_norm(f"{name}.{number}.0", x, width if last else x.shape[-1], kernel=3, stride=2)
            x = x if last else nn.relu(x)
        return x


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, added to what came in."""

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        y = nn.relu(conv_norm("conv1", x, x.shape[-1], kernel=3))
        return nn.relu(x + conv_norm("conv2", y, x.shape[-1], kernel=3))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions to `EXPANSION` times `width` channels, added to what came in.

    Attributes:
        width: channels inside.
    """

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w _"]) -> Float[Array, "n h w _"]:
        wide = EXPANSION * self.width
        y = nn.relu(conv_norm("conv1", x, self.width))
        y = nn.relu(conv_norm("conv2", y, self.width, kernel=3))
        y = conv_norm("conv3", y, wide)
        if x.shape[-1] != wide:
            x = conv_norm("downsample.0", x, wide)
        return nn.relu(x + y)


def _biased(name: str, x: Array, width: int, kernel: int, stride: int) -> Float[Array, "n h w width"]:
    """As the head has them: the convolution keeps its bias before the batch norm; relu."""
    x = conv(name, x, width, kernel, stride)
    return nn.relu(nn.BatchNorm(True, epsilon=1e-5, name=norm_name(name))(x))


MODEL = imagenet_model(
    "hrnet-w32",
    HRNet(),
    "timm, hrnet_w32.ms_in1k",
    "https://huggingface.co/timm/hrnet_w32.ms_in1k/resolve/main/model.safetensors",
)
