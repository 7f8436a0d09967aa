"""Options that several commands have."""

from pathlib import Path

import click

from zfkeras.choices import PREPROCESSINGS

EXAMPLE_MODEL = Path("exported/zfnet-imagenette")


def model_option(help):
    return click.option(
        "--model",
        "model_path",
        type=click.Path(path_type=Path),
        default=EXAMPLE_MODEL,
        show_default=True,
        help=help,
    )


def output_option(default, help):
    return click.option(
        "--output",
        type=click.Path(path_type=Path),
        default=default,
        show_default=default is not None,
        help=help,
    )


def dataset_options(split):
    """Options that say which pictures a command looks at; `split` is what it takes by default."""
    options = (
        click.option(
            "--dataset",
            required=True,
            help="Folder with train/<class>/ and val/<class>/, tensorflow-datasets name, "
            "or 'shapes'.",
        ),
        click.option("--data-dir", help="Where tensorflow-datasets keeps its data sets."),
        click.option("--split", default=split, show_default=True, help="validation or train."),
    )

    def decorate(command):
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def size(context, parameter, value):
    """Callback of an option that takes a height and a width, such as 224x224."""
    if value is None:
        return None
    height, _, width = value.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise click.BadParameter(f"Expected HEIGHTxWIDTH, such as 224x224. Received: {value}.")
    return int(height), int(width)


def keras_file_options(command):
    """Options that say how a .keras file wants its pictures."""
    command = click.option(
        "--input-size",
        metavar="HEIGHTxWIDTH",
        callback=size,
        help="Of a .keras file that leaves it open.",
    )(command)
    return click.option(
        "--preprocessing",
        type=click.Choice(PREPROCESSINGS),
        default="none",
        show_default=True,
        help="What a .keras file was trained with and does not do itself: pixels as they are, from "
        "0 to 1, or what keras.applications calls tf, torch and caffe.",
    )(command)


def names(context, parameter, value):
    """Callback of an option that takes names with commas between them."""
    return None if value is None else [name.strip() for name in value.split(",")]


def numbers(context, parameter, value):
    """Callback of an option that takes whole numbers with commas between them."""
    if value is None:
        return None
    try:
        return tuple(int(number) for number in value.split(",") if number.strip())
    except ValueError as error:
        raise click.BadParameter(f"Expected numbers such as 1,2,5. Received: {value}.") from error


def layers_option(default="all"):
    return click.option(
        "--layers",
        metavar="NAME,NAME,...",
        callback=names,
        help=f"Only these layers.  [{default}]",
    )


def prepare_output(folder, names, inputs):
    """Makes the folder of results, before there are any to lose.

    Raises:
        ValueError: If a result of one of the names would take the place of an input.
        OSError: If it cannot be made.
    """
    given = {path.resolve() for path in inputs}
    for name in names:
        if (folder / name).resolve() in given:
            raise ValueError(f"{folder / name} would be replaced. Expected another --output.")
    folder.mkdir(parents=True, exist_ok=True)


labels_option = click.option(
    "--label",
    "labels",
    multiple=True,
    help="Class of interest, by name or number: one for all pictures, or given once for each.  "
    "[the most probable one]",
)


def class_numbers(labels, names, pictures):
    """The class of each of so many pictures: a number, or None for the most probable one.

    Args:
        labels: What `labels_option` gave.
        names: Name of each class.
        pictures: How many pictures there are.
    """
    if len(labels) not in (0, 1, pictures):
        raise click.BadParameter(
            f"Expected one class, or one for each of {pictures} pictures. Received: {len(labels)}.",
            param_hint="--label",
        )
    numbers = [_class_number(label, names) for label in labels] or [None]
    return numbers * pictures if len(numbers) == 1 else numbers


def _class_number(label, names):
    if label in names:
        return names.index(label)
    if label.isdecimal() and int(label) < len(names):
        return int(label)
    raise click.BadParameter(
        f"Expected a class of {', '.join(names[:20])}{' ...' if len(names) > 20 else ''}, or its "
        f"number. Received: {label}.",
        param_hint="--label",
    )


def word_or_colour(context, parameter, text):
    """Callback of an option that takes a word or a colour such as 124,116,104."""
    parts = text.split(",")
    if len(parts) == 1:
        return text
    try:
        return tuple(float(part) for part in parts)
    except ValueError as error:
        raise click.BadParameter(f"Expected a word or R,G,B. Received: {text}.") from error


def names_of_results(pictures):
    """What the results of pictures are called: their file's name, numbered where it comes again."""
    stems = [path.stem for path in pictures]
    taken = set()
    for index, stem in enumerate(stems):
        name, number = stem, 1
        while name in taken or (number > 1 and name in stems):
            number += 1
            name = f"{stem}-{number}"
        taken.add(name)
        stems[index] = name
    return stems
