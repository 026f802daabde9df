"""deltajax: recompute only what changed. A JAX function transformation for video networks.

    inc = dj.incremental(fn, tau=0.0)                   # fn(params, frame) -> output
    cache, mask = inc.init(params, frame)
    output, cache, mask = inc.step(params, cache, mask, frame)
"""

from . import layers as layers
from . import onnx as onnx
from ._explain import Report as Report
from ._incremental import Incremental as Incremental
from ._incremental import incremental as incremental
from ._stats import Stats as Stats
from .tuning import Tuning as Tuning
from .tuning import tune as tune
