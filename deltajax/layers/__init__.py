"""Layers that recompute only what changed, for writing a network by hand.

Every layer is pure and has the form of `Incremental.step`:

    layer = dj.layers.conv(padding=1)
    cache = layer.init(params, x)
    y, cache, mask = layer(params, cache, mask, x)

The mask that goes in says where `x` changed, the one that comes out says where `y` did, so each layer feeds
the next (Borji, arXiv 2407.01782, figure 2). A layer is `incremental` of its one operation: the planner, the
rules and the tiles are the same, only the masks pass through the caller's hands. `incremental` of the whole
network fuses operations and keeps one copy where two layers keep two, so it is the faster of the two.
"""

from ._layer import Layer as Layer
from ._layer import Options as Options
from ._layer import layer as layer
from ._position import add as add
from ._position import concatenate as concatenate
from ._position import detect as detect
from ._position import elementwise as elementwise
from ._position import join as join
from ._reduce import dense as dense
from ._reduce import global_pool as global_pool
from ._window import avg_pool as avg_pool
from ._window import conv as conv
from ._window import conv_transpose as conv_transpose
from ._window import max_pool as max_pool
