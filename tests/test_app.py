import io
import itertools
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from zfkeras import gallery, trained
from zfkeras.data import datasets

APP = Path(__file__).parents[1] / "app"

_file = io.BytesIO()
Image.fromarray(np.arange(50 * 61 * 3, dtype=np.uint8).reshape(50, 61, 3)).save(_file, "JPEG")
JPEG = _file.getvalue()

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def app(export_dir, monkeypatch):
    monkeypatch.syspath_prepend(str(APP))
    for name in ("models", "uploads"):
        sys.modules.pop(name, None)
    app = AppTest.from_file(str(APP / "main.py"), default_timeout=120)
    app.session_state["folder"] = str(export_dir.parent)
    return app


def test_the_page_shows_classes_and_projections_of_a_sample(app):
    app.run()

    assert not app.exception
    assert not app.error
    assert app.title[0].value == "What this picture excites"
    assert "conv3" in app.subheader[1].value
    assert len([button for button in app.button if button.label.startswith("Map ")]) == 5


def test_another_layer_shows_its_own_maps(app):
    app.run()

    app.select_slider(key="layer").set_value("conv1").run()

    assert not app.exception
    assert app.subheader[1].value == "Strongest feature maps of conv1"


def test_one_projection_can_be_enlarged(app):
    app.run()

    app.button[0].click().run()

    assert not app.exception
    assert any("It sees rows" in markdown.value for markdown in app.markdown)


def test_a_folder_without_models_gets_a_message(app, tmp_path):
    app.session_state["folder"] = str(tmp_path)

    app.run()

    assert not app.exception
    assert "holds no exported model" in app.error[0].value


def test_a_broken_model_gets_a_message(app, tmp_path):
    version = tmp_path / "broken" / "1"
    version.mkdir(parents=True)
    (version / "saved_model.pb").write_bytes(b"")
    (version / "card.json").write_text("{")
    app.session_state["folder"] = str(tmp_path)

    app.run()

    assert not app.exception
    assert "no readable card.json" in app.error[0].value


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", b"not a picture", "notes.txt is not a picture"),
        ("broken.jpg", JPEG[: len(JPEG) // 2], "broken.jpg cannot be read as a picture"),
    ],
    ids=["text", "truncated"],
)
def test_a_wrong_upload_gets_a_message(app, name, content, message):
    app.run()

    app.file_uploader[0].set_value((name, content, "image/jpeg")).run()

    assert not app.exception
    assert message in app.error[0].value


def test_a_picture_of_ones_own_is_projected(app):
    app.run()

    app.file_uploader[0].set_value(("mine.jpg", JPEG, "image/jpeg")).run()

    assert not app.exception
    assert not app.error
    assert app.subheader[1].value == "Strongest feature maps of conv3"


def test_a_square_slides_over_a_picture(app):
    app.switch_page("views/occlusion.py").run()

    assert not app.exception
    assert not app.error
    falls = app.subheader[0].value
    assert re.search(r": [\d.]+%, down to [\d.]+%", falls)
    assert "Of conv3, feature map " in app.caption[0].value

    app.slider(key="size").set_value(29).run()
    app.selectbox(key="class").set_value(3).run()

    assert not app.exception
    assert app.subheader[0].value.startswith("gas pump: ")
    assert "row 0, column " in app.caption[0].value


def test_a_wrong_upload_is_refused_on_the_page_of_occlusion_too(app):
    app.switch_page("views/occlusion.py").run()

    app.file_uploader[0].set_value(("notes.txt", b"not a picture", "image/jpeg")).run()

    assert not app.exception
    assert "notes.txt is not a picture" in app.error[0].value


@pytest.fixture(scope="module")
def gallery_dir(export_dir, tmp_path_factory):
    """A gallery of eight pictures, in which one feature map never fires."""
    root, rng = tmp_path_factory.mktemp("gallery"), np.random.default_rng(0)
    for index in range(8):
        picture = rng.integers(0, 255, (45, 50, 3), dtype=np.uint8)
        (root / "photos").mkdir(exist_ok=True)
        Image.fromarray(picture).save(root / "photos" / f"{index}.png")
    network = trained.load(export_dir)
    bias = network.model.get_layer("conv3").bias
    bias.assign(np.where(np.arange(5) == 2, -1e9, np.asarray(bias)))
    pictures = datasets.load(str(root / "photos"), "validation", 41, labelled=False)
    gallery.make(network, pictures, root / "out", ["conv1", "conv3"], top_k=3)
    return root / "out"


def open_gallery(app, folder):
    app.session_state["gallery"] = str(folder)
    return app.switch_page("views/galleries.py").run()


def test_a_gallery_can_be_browsed(app, gallery_dir):
    open_gallery(app, gallery_dir)

    assert not app.exception
    assert not app.error
    assert "8 pictures of" in app.caption[0].value
    # Column by column.
    assert [button.label.split(":")[0] for button in app.button] == [
        f"Map {feature_map}" for feature_map in (0, 2, 1, 3)
    ]

    app.selectbox(key="gallery-layer").set_value("conv3").run()
    silent = np.sum(gallery.load(gallery_dir).numbers("conv3")["activations"][:, 0] == 0)
    assert 1 <= silent < 4
    assert f"{silent} of 5 feature maps of conv3 never fired" in app.caption[0].value
    app.toggle(key="by-strength").set_value(True).run()
    strengths = [float(button.label.split(":")[1]) for button in app.button]
    left, right = strengths[: -(-len(strengths) // 2)], strengths[-(-len(strengths) // 2) :]
    row_by_row = [one for pair in itertools.zip_longest(left, right) for one in pair]
    assert row_by_row[: len(strengths)] == sorted(strengths, reverse=True)


def test_one_feature_map_of_a_gallery_can_be_enlarged(app, gallery_dir):
    open_gallery(app, gallery_dir)

    app.button(key="map-conv1-2").click().run()

    assert not app.exception
    shown = app.dataframe[0].value
    numbers = gallery.load(gallery_dir).numbers("conv1")
    assert shown["picture"].tolist() == [Path(name).name for name in numbers["names"][2]]
    np.testing.assert_array_equal(shown["bottom"], numbers["boxes"][2, :, 2])


def test_a_damaged_layer_of_a_gallery_gets_a_message(app, gallery_dir, tmp_path):
    folder = shutil.copytree(gallery_dir, tmp_path / "copy")
    (folder / "conv1.npz").write_bytes(b"PK and nothing more")

    open_gallery(app, folder)

    assert not app.exception
    assert "conv1.npz is damaged" in app.error[0].value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no gallery"),
        ("{", "gallery.json is damaged"),
        ('{"settings": {}, "findings": {}}', "damaged, or of another version of zfkeras"),
        (
            json.dumps(
                {
                    "settings": {**dict.fromkeys(gallery.SETTING_NAMES, 1), "layers": ["conv1"]},
                    "findings": {"projection_seconds": {}},
                }
            ),
            "has no finished layer yet",
        ),
    ],
)
def test_a_folder_without_a_gallery_gets_a_message(app, tmp_path, content, message):
    if content is not None:
        (tmp_path / "gallery.json").write_text(content)

    open_gallery(app, tmp_path)

    assert not app.exception
    assert message in app.error[0].value
