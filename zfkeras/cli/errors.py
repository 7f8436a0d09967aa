"""How commands speak of what went wrong: one line, exit code 2, no traceback."""

import functools
import sys

import click


class OneLineError(click.ClickException):
    """What was wrong with the input, without the usage that click shows for a wrong option."""

    exit_code = 2


class OneLineCommand(click.Command):
    """A command that speaks of wrong options as of any other wrong input: in one line."""

    def make_context(self, *args, **kwargs):
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            raise OneLineError(" ".join(error.format_message().split())) from error


def one_line_errors(command):
    """Turns the library's errors into one line with exit code 2 and no traceback."""

    @functools.wraps(command)
    def guarded(*args, **kwargs):
        try:
            return command(*args, **kwargs)
        except click.BadParameter as error:
            raise OneLineError(error.format_message()) from error
        except (ValueError, OSError) as error:
            raise OneLineError(" ".join(str(error).split())) from error
        except MemoryError as error:
            raise OneLineError(f"There is too little memory. {error}".strip()) from error
        except Exception as error:
            # Not imported here, where most commands have not needed it yet.
            tensorflow = sys.modules.get("tensorflow")
            if tensorflow is None or not isinstance(error, tensorflow.errors.OpError):
                raise
            raise OneLineError(f"TensorFlow: {' '.join(error.message.split())[:300]}") from error

    return guarded
