"""Zeiler & Fergus (2014), "Visualizing and Understanding Convolutional Networks", on Keras 3.

Import the module you need (`from zfkeras.deconvnet import Deconvnet`); importing the package alone
loads neither Keras nor TensorFlow, which keeps `zfkeras --help` instant.
"""

__version__ = "0.1.0"
