"""`zfkeras evaluate`: errors and confusion matrix of one model or of several averaged."""

import sys
from pathlib import Path

import click

from zfkeras.cli.errors import OneLineCommand, one_line_errors
from zfkeras.cli.options import dataset_options, output_option
from zfkeras.cli.startup import import_tensorflow


@click.command(cls=OneLineCommand)
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@dataset_options("validation")
@click.option(
    "--views", type=int, default=1, show_default=True, help="1, the centre; 10, as the paper's."
)
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@output_option(None, "Folder for errors.json, confusion.csv and confusion.png.")
@one_line_errors
def evaluate(models, dataset, data_dir, split, views, batch_size, output):
    """Measure the errors of MODELS, training runs or exported, on a data set.

    Several models are averaged, as in the paper's Table 2.

    \b
    Example:
        zfkeras evaluate exported/zfnet-imagenette --dataset imagenette160 --views 10
    """
    import_tensorflow()
    from tqdm import tqdm

    from zfkeras import trained as networks
    from zfkeras.data import datasets
    from zfkeras.training.evaluation import Evaluator

    trained = [networks.load(path) for path in models]
    names = trained[0].class_names
    for path, one in zip(models, trained, strict=True):
        if not one.class_names:
            raise ValueError(f"{path} does not know its classes. Expected a run or an export.")
        if one.class_names != names:
            raise ValueError(f"{path} knows other classes than {models[0]}.")
    evaluator = Evaluator(
        [one.model for one in trained], [one.mean_image for one in trained], views
    )
    pictures = datasets.load(dataset, split, len(trained[0].mean_image), data_dir)
    if pictures.class_names != names:
        raise ValueError(
            f"{dataset} has the classes {', '.join(pictures.class_names)}. "
            f"Expected those of {models[0]}: {', '.join(names)}."
        )
    with (
        datasets.naming_broken_pictures(dataset),
        tqdm(total=pictures.count, unit=" images", disable=not sys.stderr.isatty()) as bar,
    ):
        evaluation = evaluator(pictures, batch_size, bar.update)
    errors = evaluation.errors
    if output:
        from zfkeras import plots

        settings = {"models": [str(path) for path in models], "dataset": dataset, "split": split}
        evaluation.save(output, names, views=views, **settings)
        plots.save(plots.confusion(evaluation.confusion, names), output / "confusion.png")
        click.echo(f"Wrote errors.json, confusion.csv and confusion.png to {output}")
    click.echo(
        f"Top-1 error {errors.top1:.2%}, top-5 error {errors.top5:.2%} "
        f"on {errors.count} pictures, {views} view{'s' if views > 1 else ''}."
    )
