import pytest

from zfkeras.training.schedule import rate_factor

# Validation errors of twelve epochs, and the factor after each, by hand: patience 3, decay 0.1.
ERRORS = [0.9, 0.7, 0.7, 0.71, 0.8, 0.6, 0.65, 0.6, 0.61, 0.62, 0.6, 0.61]
FACTORS = [1, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001]


def test_plateau_follows_the_table():
    for epoch, factor in enumerate(FACTORS):
        assert rate_factor("plateau", 0.5, ERRORS[:epoch]) == pytest.approx(factor), epoch


def test_plateau_has_its_patience_and_factor():
    errors = [0.5, 0.5, 0.5, 0.5]

    assert rate_factor("plateau", 0, errors, patience=4) == 1
    assert rate_factor("plateau", 0, errors, patience=1, decay_factor=0.5) == 0.125


@pytest.mark.parametrize(
    ("schedule", "progress", "factor"),
    [
        ("constant", 0.9, 1),
        ("cosine", 0, 1),
        ("cosine", 0.5, 0.5),
        ("cosine", 1, 0),
        ("step", 0.3, 1),
        ("step", 0.4, 0.1),
        ("step", 0.7, 0.01),
        ("step", 1, 0.01),
    ],
)
def test_other_schedules_follow_progress(schedule, progress, factor):
    assert rate_factor(schedule, progress, []) == pytest.approx(factor)
