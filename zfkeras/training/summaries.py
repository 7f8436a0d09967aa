"""What TensorBoard shows of a run."""

import numpy as np
import tensorflow as tf

from zfkeras import rendering

STEPS_BETWEEN = 20


class Summaries:
    """Writes a run's curves and first-layer filters where TensorBoard finds them.

    Args:
        folder: Where to write; made if missing.
    """

    def __init__(self, folder):
        self._writer = tf.summary.create_file_writer(str(folder))

    def write_step(self, step, **values):
        """Values of one update, every so many updates."""
        if step % STEPS_BETWEEN == 0:
            self._write(step, "step", values)

    def write_epoch(self, step, row, model):
        """An epoch's row of metrics, and the filters that a person can read: the first layer's."""
        self._write(step, "epoch", {name: row[name] for name in row if name != "epoch"})
        kernel = np.asarray(model.get_layer(model.feature_layers[0]).kernel)
        sheet = rendering.filter_sheet(kernel.transpose(3, 0, 1, 2))
        with self._writer.as_default(step=step):
            tf.summary.image("first_layer_filters", sheet[None])
        self._writer.flush()

    def close(self):
        """Writes what has not been written yet."""
        self._writer.close()

    def _write(self, step, group, values):
        with self._writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(f"{group}/{name}", value)
