"""A module imports only modules of a lower rank, and can be read without those above it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import zfkeras

PACKAGE = Path(zfkeras.__file__).parent

STRATA = [
    [
        "",
        "fingerprint",
        "writing",
        "architecture",
        "choices",
        "training",
        "training.schedule",
        "data",
    ],
    [
        "constraints",
        "ops",
        "receptive_field",
        "rendering",
        "plots",
        "projections",
        "training.config",
        "data.images",
        "data.pictures",
        "data.samples",
        "data.shapes",
    ],
    [
        "layers.pooling",
        "layers.unpooling",
        "layers.contrast",
        "layers.dropout",
        "rules",
        "windows",
        "data.datasets",
        "training.optimizer",
        "training.summaries",
    ],
    ["layers.conv_block", "data.batches", "graph"],
    ["layers.deconv_block", "training.strategy", "incremental"],
    ["layers", "training.evaluation"],
    ["models"],
    ["deconvnet", "training.run"],
    ["training.loop", "export", "exemplars", "mirror"],
    ["demo", "trained"],
    ["features", "gallery"],
    ["correspondence", "invariance", "occlusion"],
    ["evolution"],
    ["cli.errors", "cli.options", "cli.progress", "cli.startup"],
    [
        "cli.project",
        "cli.correspondence",
        "cli.demo",
        "cli.evaluate",
        "cli.evolution",
        "cli.gallery",
        "cli.invariance",
        "cli.occlusion",
        "cli.train",
    ],
    ["cli.export"],
    ["cli"],
    ["__main__"],
]
RANK = {name: rank for rank, stratum in enumerate(STRATA) for name in stratum}
MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imported_names(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                is_module = submodule.removeprefix("zfkeras.") in RANK
                yield submodule if is_module else node.module


def imported_modules(path):
    for name in imported_names(path):
        if name == "zfkeras" or name.startswith("zfkeras."):
            yield name.removeprefix("zfkeras").removeprefix(".")


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_downwards(path):
    module = module_name(path)

    for imported in imported_modules(path):
        assert RANK[imported] < RANK[module], f"{module} imports {imported}"


def test_every_module_has_a_rank():
    assert {module_name(path) for path in MODULES} == set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_the_library_knows_nothing_of_its_callers(path):
    roots = {name.split(".")[0] for name in imported_names(path)}

    assert not roots & {"app", "scripts", "tests", "streamlit"}
    assert "matplotlib" not in roots or module_name(path) == "plots"
    assert "click" not in roots or module_name(path).split(".")[0] == "cli"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_only_commands_print(path):
    names = {node.id for node in ast.walk(ast.parse(path.read_text())) if hasattr(node, "id")}

    assert "print" not in names


def test_rendering_knows_numpy_and_pillow_only():
    roots = {name.split(".")[0] for name in imported_names(PACKAGE / "rendering.py")}

    assert roots == {"numpy", "PIL", "zfkeras"}


@pytest.mark.parametrize(
    "name", ["zfkeras"] + [f"zfkeras.{name}" for name in ("cli", "receptive_field", "rendering")]
)
def test_tensorflow_is_not_imported_for_nothing(name):
    script = f"import sys, {name}; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
