"""Pictures with labels, from their original files or from what TensorFlow Datasets prepared."""

from .cifar10 import Cifar10 as Cifar10
from .cifar10 import read_cifar10 as read_cifar10
from .cifar10 import read_cifar10_binary as read_cifar10_binary
from .cifar10 import read_cifar10_pictures as read_cifar10_pictures
from .mnist import Mnist as Mnist
from .mnist import read_idx as read_idx
from .mnist import read_mnist as read_mnist
from .tfds import prepare_cifar10 as prepare_cifar10
from .tfds import prepare_mnist as prepare_mnist
from .tfds import read_cifar10_tfds as read_cifar10_tfds
from .tfds import read_mnist_tfds as read_mnist_tfds
