"""Learning rate over a run, as a factor of the first learning rate."""

import math

SCHEDULES = ("plateau", "step", "cosine", "constant")

# The paper lowers by hand "when the validation error plateaus"; this is that hand.
PLATEAU_PATIENCE = 3
PLATEAU_FACTOR = 0.1


def rate_factor(schedule, progress, validation_errors):
    """What to multiply the learning rate by.

    Args:
        schedule: One of `SCHEDULES`.
        progress: Share of the run that is done, in [0, 1].
        validation_errors: Top-1 error after every epoch so far, which `"plateau"` looks at.

    Returns:
        A factor in [0, 1].
    """
    match schedule:
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        case "step":
            return 0.1 ** min(int(progress * 3), 2)
        case "plateau":
            return PLATEAU_FACTOR ** _plateaus(validation_errors)
        case _:
            return 1.0


def _plateaus(errors):
    """How often the error went `PLATEAU_PATIENCE` epochs without a new best."""
    count, best, waited = 0, math.inf, 0
    for error in errors:
        if error < best:
            best, waited = error, 0
            continue
        waited += 1
        if waited == PLATEAU_PATIENCE:
            count, waited = count + 1, 0
    return count
