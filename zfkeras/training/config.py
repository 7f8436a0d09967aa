"""Everything that decides how a training run goes, in one frozen dataclass."""

import dataclasses
import json
from dataclasses import dataclass

from zfkeras.architecture import ARCHITECTURES
from zfkeras.data.images import CROPS
from zfkeras.models import INITIALIZATIONS
from zfkeras.training.schedule import SCHEDULES
from zfkeras.training.strategy import STRATEGIES

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")

# 256 for 224: the paper's pictures are this much larger than its crops.
RESIZE_RATIO = 256 / 224


@dataclass(frozen=True)
class TrainingConfig:
    """A training run. Defaults are the paper's (section 3) where it gives a value."""

    dataset: str
    data_dir: str | None = None  # where tensorflow-datasets keeps its data
    architecture: str = "zfnet"
    epochs: int = 70
    global_batch_size: int = 128  # pictures per update, over all replicas
    learning_rate: float = 1e-2
    schedule: str = "plateau"
    warmup_steps: int = 0  # updates over which the learning rate rises linearly from 0
    momentum: float = 0.9
    weight_decay: float = 0.0  # L2 penalty on all filters; the paper is silent
    label_smoothing: float = 0.0
    initialization: str = "paper"
    filter_rms: float = 0.1  # for inputs of about +-128
    crops: str = "ten"
    colour_jitter: float = 0.0  # share by which brightness, contrast and saturation vary
    resize_size: int | None = None  # side of the square before cropping; 256/224 of the input
    precision: str = "float32"
    strategy: str = "default"
    seed: int = 0
    cache_gib: float = 4.0  # decoded pictures are kept in memory if they fit in this much

    def __post_init__(self):
        choices = {
            "architecture": ARCHITECTURES,
            "schedule": SCHEDULES,
            "initialization": INITIALIZATIONS,
            "crops": CROPS,
            "precision": PRECISIONS,
            "strategy": STRATEGIES,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(allowed)}. "
                    f"Received: {name}={getattr(self, name)!r}."
                )
        for name in ("epochs", "global_batch_size", "learning_rate", "filter_rms"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"`{name}` must be positive. Received: {name}={getattr(self, name)}."
                )
        for name in ("weight_decay", "colour_jitter", "warmup_steps", "seed", "cache_gib"):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"`{name}` must not be negative. Received: {name}={getattr(self, name)}."
                )
        for name in ("momentum", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` must be at least 0 and below 1. "
                    f"Received: {name}={getattr(self, name)}."
                )
        if self.side < max(ARCHITECTURES[self.architecture].input_size):
            raise ValueError(
                "`resize_size` must be at least the input of the architecture, "
                f"{max(ARCHITECTURES[self.architecture].input_size)}. "
                f"Received: resize_size={self.resize_size}."
            )

    @property
    def side(self):
        """Side of the centre square that pictures are reduced to before they are cropped."""
        if self.resize_size is not None:
            return self.resize_size
        return round(max(ARCHITECTURES[self.architecture].input_size) * RESIZE_RATIO)

    def to_json(self):
        """This configuration as JSON text; `from_json` is the inverse."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text):
        """The configuration that `to_json` wrote."""
        return cls(**json.loads(text))
