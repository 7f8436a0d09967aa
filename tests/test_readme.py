"""What README says can be done, can be done."""

import re
import shlex

import click
import pytest
from conftest import ROOT

from zfkeras import cli, export
from zfkeras.architecture import ARCHITECTURES

README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()

COMMANDS = re.findall(r"^    (zfkeras(?:-train)? .*)$", README, re.MULTILINE)
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_accepted(line):
    program, *arguments = shlex.split(line)
    command = cli.train if program == "zfkeras-train" else cli.cli
    if command is cli.cli:
        name, *arguments = arguments
        command = cli.cli.commands[name]
    # A picture that exists, where the reader puts theirs.
    arguments = [argument.replace("PICTURE", str(ROOT / "README.md")) for argument in arguments]

    context = command.make_context(program, arguments)

    assert isinstance(context, click.Context)


def test_readme_shows_every_command():
    shown = {shlex.split(line)[1] for line in COMMANDS if line.startswith("zfkeras ")}

    assert shown == set(cli.cli.commands)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=["mirror", "occlusion", "python", "serving"])
def test_snippets_run(snippet, monkeypatch):
    monkeypatch.chdir(ROOT)

    exec(compile(snippet, "README.md", "exec"), {})


@pytest.mark.parametrize("target", re.findall(r"make (\w+)", README))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)


def test_every_architecture_is_listed():
    assert set(re.findall(r"^\| `([\w-]+)` \|", README, re.MULTILINE)) == set(ARCHITECTURES)


def test_the_errors_are_those_of_the_card():
    card = export.load(ROOT / "exported" / "zfnet-imagenette").card

    errors = card["errors"]
    assert f"top-1 error {errors['top1']:.2%}, top-5 error {errors['top5']:.2%}" in README
    assert f"{card['parameters']:,} parameters" in README


@pytest.mark.parametrize("path", re.findall(r"\]\(([\w./-]+)\)", README))
def test_links_lead_somewhere(path):
    assert (ROOT / path).exists()
