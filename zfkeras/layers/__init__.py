"""Keras layers: the convolutional block, its mirror, and the parts of both."""

from zfkeras.layers.contrast import LocalResponseNormalization
from zfkeras.layers.conv_block import ConvBlock
from zfkeras.layers.deconv_block import DeconvBlock
from zfkeras.layers.dropout import ReplicaDropout
from zfkeras.layers.pooling import SwitchedMaxPooling2D
from zfkeras.layers.unpooling import MaxUnpooling2D

__all__ = [
    "ConvBlock",
    "DeconvBlock",
    "LocalResponseNormalization",
    "MaxUnpooling2D",
    "ReplicaDropout",
    "SwitchedMaxPooling2D",
]
