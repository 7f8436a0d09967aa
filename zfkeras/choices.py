"""The words that settings may take, where a program can list them without loading TensorFlow."""

CROPS = ("centre", "ten", "random", "scaled")
FILLS = ("gray", "mean", "blur")
BORDERS = ("gray", "mean", "edge", "reflect")
INITIALIZATIONS = ("paper", "he")
NORMALIZATIONS = ("relative", "unit", "none")
PREPROCESSINGS = ("none", "unit", "tf", "torch", "caffe")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
SCHEDULES = ("plateau", "step", "cosine", "constant")
STRATEGIES = ("default", "mirrored", "multi_worker_mirrored")
TRANSFORMATIONS = ("vertical", "horizontal", "scale", "rotation")
