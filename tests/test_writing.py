import errno

import pytest

from zfkeras.writing import replacing


def test_a_file_takes_its_place_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with replacing(path) as beside:
        assert beside.suffix == ".txt" and beside.parent == path.parent
        beside.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("no"), OSError(errno.ENOSPC, "No space left")])
def test_what_was_there_stays_when_writing_fails(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("before")
    with pytest.raises(type(error)), replacing(path) as beside:
        beside.write_text("half")
        raise error
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_says_what_could_not_be_written(tmp_path):
    # Where writing always fails for want of space, whoever one is.
    with (
        pytest.raises(OSError, match="No space left on device: .*file.txt") as failure,
        replacing(tmp_path / "file.txt"),
        open("/dev/full", "w") as full,
    ):
        full.write("more than fits")
        full.flush()
    assert failure.value.errno == errno.ENOSPC
