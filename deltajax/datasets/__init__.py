"""Pictures with labels, from their original files or from what TensorFlow Datasets prepared; no TensorFlow needed."""

from .mnist import Mnist as Mnist
from .mnist import read_idx as read_idx
from .mnist import read_mnist as read_mnist
from .mnist import read_mnist_tfds as read_mnist_tfds
