"""How far a command with several stages has come, one bar for each, if anybody is watching."""

import sys


class Stages:
    """Shows a bar for every stage that a function is told of; call it with stage, done, total."""

    def __enter__(self):
        self._bar, self._stage = None, None
        return self

    def __exit__(self, *error):
        if self._bar is not None:
            self._bar.close()

    def __call__(self, stage, done, total):
        from tqdm import tqdm

        if stage != self._stage:
            self.__exit__()
            self._stage = stage
            self._bar = tqdm(desc=stage, total=total, disable=not sys.stderr.isatty())
        self._bar.update(done - self._bar.n)
