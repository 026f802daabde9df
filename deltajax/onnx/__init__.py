"""ONNX files as JAX functions: what torch, Keras, scikit-learn and others export, in one line.

    fn, params = dj.onnx.load("net.onnx")
    inc = dj.incremental(lambda params, frame: fn(params, frame[None]))

Operators of vision networks, opsets 7 to 28 (https://onnx.ai/onnx/operators); the rest is refused by name. Needs the
extra: ``pip install 'deltajax[onnx]'``.
"""

from ._model import load as load
from ._model import load_of_picture as load_of_picture
from ._model import read_initialisers as read_initialisers
