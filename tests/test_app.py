import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

APP = Path(__file__).parents[1] / "app"

_file = io.BytesIO()
Image.fromarray(np.arange(50 * 61 * 3, dtype=np.uint8).reshape(50, 61, 3)).save(_file, "JPEG")
JPEG = _file.getvalue()

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def app(export_dir, monkeypatch):
    monkeypatch.syspath_prepend(str(APP))
    sys.modules.pop("models", None)
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
