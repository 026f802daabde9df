"""ViT-S/16, a transformer of 22,050,664 parameters that names a picture: 224x224 frame, 197 tokens.

Architecture and names: `vit_small_patch16_224` of huggingface/pytorch-image-models (Apache-2.0), in
timm/models/vision_transformer.py; Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv 2010.11929, in the small
size of Touvron et al., arXiv 2012.12877. Modules and parameters carry timm's names ("blocks.3.attn.qkv", "cls_token"),
so its state dict maps onto the params name by name.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Float32, UInt8

from deltajax.models.imagenet import CLASSES, SIDE, imagenet_model

PATCH = 16  # pixels that become one token, in either direction
GRID = SIDE // PATCH  # patches along a side of the frames that the positions were learned for
EPS = 1e-6  # of layer norm


class ViT(nn.Module):
    """Logits of the thousand classes, from uint8 RGB frames.

    A frame of another size than 224x224 takes the learned positions resized to its patches, as timm does with
    `dynamic_img_size`.

    Attributes:
        width: channels of a token.
        depth: blocks.
        heads: of the attention in each block.

    Raises:
        ValueError: a side of the frame is no multiple of 16.
    """

    width: int = 384
    depth: int = 12
    heads: int = 6

    @nn.compact
    def __call__(self, frame: UInt8[Array, "*batch height width 3"]) -> Float32[Array, "*batch 1000"]:
        *batch, height, width, _ = frame.shape
        if height % PATCH or width % PATCH:
            raise ValueError(f"`frame` has shape {frame.shape}; its height and width must be multiples of {PATCH}")
        x = (frame.reshape(-1, height, width, 3).astype(jnp.float32) / 255 - 0.5) / 0.5
        x = nn.Conv(self.width, (PATCH, PATCH), PATCH, padding="VALID", name="patch_embed.proj")(x)
        count, rows, columns, _ = x.shape
        first = self.param("cls_token", nn.initializers.zeros, (1, 1, self.width))
        learned = self.param("pos_embed", nn.initializers.normal(0.02), (1, 1 + GRID * GRID, self.width))
        x = x.reshape(count, rows * columns, self.width)
        x = jnp.concatenate([jnp.broadcast_to(first, (count, 1, self.width)), x], axis=1)
        x = x + positions(learned, rows, columns)
        for number in range(self.depth):
            x = Block(self.heads, name=f"blocks.{number}")(x)
        x = nn.LayerNorm(EPS, name="norm")(x)
        return nn.Dense(len(CLASSES), name="head")(x[:, 0]).reshape(*batch, len(CLASSES))


class Block(nn.Module):
    """Attention between all tokens, then two dense layers on each, both added to what came in."""

    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "n tokens width"]) -> Float[Array, "n tokens width"]:
        x = x + Attention(self.heads, name="attn")(nn.LayerNorm(EPS, name="norm1")(x))
        y = nn.Dense(4 * x.shape[-1], name="mlp.fc1")(nn.LayerNorm(EPS, name="norm2")(x))
        return x + nn.Dense(x.shape[-1], name="mlp.fc2")(nn.gelu(y, approximate=False))


class Attention(nn.Module):
    """Of every token to every token, with queries, keys and values from one dense layer."""

    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "n tokens width"]) -> Float[Array, "n tokens width"]:
        count, tokens, width = x.shape
        x = nn.Dense(3 * width, name="qkv")(x).reshape(count, tokens, 3, self.heads, width // self.heads)
        x = jax.nn.dot_product_attention(x[:, :, 0], x[:, :, 1], x[:, :, 2])
        return nn.Dense(width, name="proj")(x.reshape(count, tokens, width))


def positions(learned: Float[Array, "1 _ width"], rows: int, columns: int) -> Float[Array, "1 _ width"]:
    """What is added to the tokens of rows x columns patches: the learned grid of 14x14, resized; bicubic.

    Args:
        learned: of the class token, then of the patches, row by row.
    """
    if (rows, columns) == (GRID, GRID):
        return learned
    width = learned.shape[-1]
    grid = jax.image.resize(learned[:, 1:].reshape(1, GRID, GRID, width), (1, rows, columns, width), "cubic")
    return jnp.concatenate([learned[:, :1], grid.reshape(1, rows * columns, width)], axis=1)


MODEL = imagenet_model(
    "vit-s",
    ViT(),
    "timm, vit_small_patch16_224.augreg_in21k_ft_in1k",
    "https://huggingface.co/timm/vit_small_patch16_224.augreg_in21k_ft_in1k/resolve/main/model.safetensors",
)
