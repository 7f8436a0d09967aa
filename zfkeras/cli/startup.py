"""Starting TensorFlow, which takes seconds and talks: only commands that need it do."""

import os
import sys


def import_tensorflow():
    """Imports TensorFlow without its report of build options, which no user asked for.

    The report is written by its C++ part before any setting of ours is read, so standard error is
    turned away for as long as the import takes. What fails still raises.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        import tensorflow

        # It warns of a function that is traced often, which one network after another needs.
        tensorflow.get_logger().setLevel("ERROR")
    finally:
        os.dup2(kept, 2)
        os.close(kept)
