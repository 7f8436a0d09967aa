"""Everything that decides how a training run goes, in one frozen dataclass.

A configuration is a preset's, changed by a TOML file, changed by the flags of `zfkeras-train`. The
flags are made from the fields below, so that a setting is named, limited and explained once.
"""

import dataclasses
import json
import math
import tomllib
import types
from dataclasses import dataclass
from pathlib import Path

from zfkeras.architecture import ARCHITECTURES
from zfkeras.choices import CROPS, INITIALIZATIONS, PRECISIONS, SCHEDULES, STRATEGIES

# 256 for 224: the paper's pictures are this much larger than its crops.
RESIZE_RATIO = 256 / 224


class ConfigError(ValueError):
    """A setting that is unknown, of the wrong kind or out of range; the message names it."""


def _setting(default, help, **more):
    """A field with what a person needs to know of it.

    Args:
        default: Its value unless given.
        help: One line for `--help`.
        **more: `option`, its flag if not named like the field; `choices`; `least`, the smallest
            value allowed; `above` and `below`, values that it must stay between; `execution`,
            whether it only decides how fast or where a run goes, so that a run may go on with
            another value.
    """
    metadata = {"help": help, **more}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TrainingConfig:
    """A training run. Defaults are the paper's (section 3) where it gives a value.

    Raises:
        ConfigError: If a value is not of its field's type or range.
    """

    dataset: str = _setting(
        dataclasses.MISSING,
        "Folder with train/<class>/ and val/<class>/, tensorflow-datasets name, or 'shapes'.",
    )
    data_dir: str | None = _setting(
        None, "Where tensorflow-datasets keeps its data sets.", execution=True
    )
    strict: bool = _setting(
        False, "Stop at a picture that cannot be read, instead of leaving it out."
    )
    architecture: str = _setting("zfnet", "Network to train.", choices=tuple(ARCHITECTURES))
    epochs: int = _setting(70, "How often every training picture is seen.", least=1)
    global_batch_size: int = _setting(
        128, "Pictures per update, over all replicas.", option="--batch-size", least=1
    )
    learning_rate: float = _setting(1e-2, "First learning rate.", above=0)
    schedule: str = _setting("plateau", "How the learning rate falls.", choices=SCHEDULES)
    patience: int = _setting(
        3, "Epochs without a new best validation error before plateau lowers the rate.", least=1
    )
    decay_factor: float = _setting(
        0.1, "What plateau and step multiply the rate by.", above=0, below=1
    )
    warmup_steps: int = _setting(
        0, "Updates over which the learning rate rises linearly from 0.", least=0
    )
    momentum: float = _setting(0.9, "Momentum of SGD.", least=0, below=1)
    weight_decay: float = _setting(
        0.0, "L2 penalty on all filters and weights; the paper is silent.", least=0
    )
    label_smoothing: float = _setting(
        0.0, "Share of a label given to all classes.", least=0, below=1
    )
    initialization: str = _setting(
        "paper", "paper: N(0, 0.01); he: scaled by layer.", choices=INITIALIZATIONS
    )
    filter_rms: float = _setting(
        0.1, "RMS cap on convolutional filters, for inputs of about +-128.", above=0
    )
    crops: str = _setting(
        "ten", "ten: the paper's; random: any place; scaled: any place and area.", choices=CROPS
    )
    colour_jitter: float = _setting(
        0.0, "Share by which brightness, contrast and saturation vary.", least=0
    )
    resize_size: int | None = _setting(
        None, "Side of the square before cropping; 256/224 of the input by default.", least=1
    )
    precision: str = _setting(
        "float32", "What layers compute in.", option="--mixed-precision", choices=PRECISIONS
    )
    strategy: str = _setting(
        "default", "How work is spread over devices.", choices=STRATEGIES, execution=True
    )
    jit_compile: bool = _setting(
        False, "Compile forward and backward pass with XLA.", execution=True
    )
    deterministic: bool = _setting(
        False, "Give the same weights bit for bit every time, at some cost.", execution=True
    )
    checkpoint_steps: int = _setting(
        1000, "Save within an epoch after every so many updates.", least=1, execution=True
    )
    snapshot_epochs: tuple[int, ...] = _setting(
        (1, 2, 5, 10, 20, 30, 40, 64),
        "Epochs whose weights are kept for feature evolution (Figure 4).",
        execution=True,
    )
    seed: int = _setting(0, "Decides weights, order, crops and dropout.", least=0)
    cache_gib: float = _setting(
        4.0,
        "Pictures are kept in memory once read if they fit in this much.",
        least=0,
        execution=True,
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = _of_type(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            if value is not None:
                _require_range(field, value)
        if self.side < max(ARCHITECTURES[self.architecture].input_size):
            raise ConfigError(
                "`resize_size` must be at least the input of the architecture, "
                f"{max(ARCHITECTURES[self.architecture].input_size)}. "
                f"Received: resize_size={self.resize_size}."
            )

    @classmethod
    def load(cls, path=None, preset=None, **changes):
        """The configuration of a preset, changed by a TOML file, changed by keyword arguments.

        Args:
            path: TOML file whose keys are fields of this class, or `preset`; None for no file.
            preset: One of `PRESETS`; the file's if None, and `"zfnet"` if it has none.
            **changes: Fields to set, whatever the file says.

        Raises:
            ConfigError: If the file cannot be read, or names a setting that does not exist.
        """
        settings = {} if path is None else _read_toml(Path(path))
        preset = preset or settings.pop("preset", None) or "zfnet"
        settings.pop("preset", None)
        if preset not in PRESETS:
            raise ConfigError(
                f"`preset` must be one of {', '.join(PRESETS)}. Received: preset={preset!r}."
            )
        known = [field.name for field in dataclasses.fields(cls)]
        for name in settings:
            if name not in known:
                raise ConfigError(
                    f"{path} has an unknown setting {name!r}. Known: {', '.join(known)}."
                )
        settings = PRESETS[preset] | settings | changes
        if "dataset" not in settings:
            raise ConfigError("Expected a data set: `dataset` is missing.")
        return cls(**settings)

    @property
    def side(self):
        """Side of the centre square that pictures are reduced to before they are cropped."""
        if self.resize_size is not None:
            return self.resize_size
        return round(max(ARCHITECTURES[self.architecture].input_size) * RESIZE_RATIO)

    def to_toml(self):
        """This configuration as TOML text, which `load` reads."""
        settings = dataclasses.asdict(self)
        # A JSON scalar or list is a TOML one. TOML has no null: what is left out is the default.
        lines = [f"{name} = {json.dumps(v)}" for name, v in settings.items() if v is not None]
        return "\n".join(lines) + "\n"


# What each architecture's authors did. zfnet is the paper's recipe, and so the class's defaults.
PRESETS = {
    "zfnet": {},
    # Krizhevsky et al. (2012), sections 4.1 and 5. Departure: his colour augmentation by principal
    # components is left out, and biases start at 0 (see `architecture.py`).
    "alexnet": {
        "architecture": "alexnet",
        "epochs": 90,
        "weight_decay": 5e-4,
        "crops": "random",
    },
    "alexnet-dense": {
        "architecture": "alexnet-dense",
        "epochs": 90,
        "weight_decay": 5e-4,
        "crops": "random",
    },
    # Departure from the paper: ten thousand pictures need more variety and a shorter way down.
    "zfnet-small": {
        "architecture": "zfnet-small",
        "epochs": 100,
        "learning_rate": 0.02,
        "schedule": "cosine",
        "warmup_steps": 50,
        "weight_decay": 5e-4,
        "label_smoothing": 0.1,
        "initialization": "he",
        "crops": "scaled",
        "colour_jitter": 0.3,
    },
}


def value_type(field):
    """The type of a field's values, None aside."""
    if isinstance(field.type, types.UnionType):
        return next(kind for kind in field.type.__args__ if kind is not type(None))
    return getattr(field.type, "__origin__", field.type)


def _of_type(field, value):
    kind, optional = value_type(field), field.default is None
    if value is None and optional:
        return None
    if kind is tuple:
        if not isinstance(value, tuple | list) or not all(type(item) is int for item in value):
            raise ConfigError(
                f"`{field.name}` must be whole numbers. Received: {field.name}={value!r}."
            )
        return tuple(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ConfigError(
            f"`{field.name}` must be a {kind.__name__}. Received: {field.name}={value!r}."
        )
    return value


def _require_range(field, value):
    limits = field.metadata
    wrong = None
    if "choices" in limits and value not in limits["choices"]:
        wrong = f"one of {', '.join(limits['choices'])}"
    elif "least" in limits and not value >= limits["least"]:
        wrong = f"at least {limits['least']}"
    elif "above" in limits and not value > limits["above"]:
        wrong = f"above {limits['above']}"
    elif "below" in limits and not value < limits["below"]:
        wrong = f"below {limits['below']}"
    elif isinstance(value, float) and not math.isfinite(value):
        wrong = "a finite number"
    if wrong:
        raise ConfigError(f"`{field.name}` must be {wrong}. Received: {field.name}={value!r}.")


def _read_toml(path):
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a TOML file: {error}.") from error
