"""Learning rate over a run, as a factor of the first learning rate."""

import math


def rate_factor(schedule, progress, validation_errors, patience=3, decay_factor=0.1):
    """What to multiply the learning rate by: a pure function of what has happened so far.

    Args:
        schedule: One of `zfkeras.choices.SCHEDULES`. `"plateau"` is the paper's hand, which lowers
            the rate "when the validation error plateaus" and does not say how far; `"step"` lowers
            it after each third of the run.
        progress: Share of the run that is done, in [0, 1].
        validation_errors: Top-1 error after every epoch so far, which `"plateau"` looks at.
        patience: Epochs without a new best error that make a plateau.
        decay_factor: What the rate is multiplied by each time it is lowered.

    Returns:
        A factor in [0, 1].
    """
    match schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        case "step":
            return decay_factor ** min(int(progress * 3), 2)
        case "plateau":
            return decay_factor ** _plateaus(validation_errors, patience)
        case _:
            return 1.0


def _plateaus(errors, patience):
    """How often the error went `patience` epochs without a new best."""
    count, best, waited = 0, math.inf, 0
    for error in errors:
        if error < best:
            best, waited = error, 0
            continue
        waited += 1
        if waited == patience:
            count, waited = count + 1, 0
    return count
