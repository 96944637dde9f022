"""A picture that a command line names: a file, or a frame of a film."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from clients.errors import RoboserveError
from roboserve.pictures import read_picture
from robot_client.video import VideoEncoder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.mp4"
    encoder = VideoEncoder(path, fps=20.0, size=(32, 32))
    for level in (0, 60, 120, 180, 240):
        encoder.add(np.full((32, 32, 3), level, np.uint8))
    encoder.close()
    return path


@pytest.mark.parametrize(("frame", "level"), [(0, 0), (3, 180), (-1, 240), (-5, 0)])
def test_a_frame_counts_from_the_start_or_the_end(film: Path, frame: int, level: int) -> None:
    with Image.open(io.BytesIO(read_picture(f"{film}#{frame}"))) as image:
        assert image.size == (32, 32)
        assert abs(np.asarray(image).mean() - level) < 8


def test_a_file_is_given_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    assert read_picture(str(path)) == path.read_bytes()


def test_what_is_no_picture_says_so(film: Path, tmp_path: Path) -> None:
    for frame in ("5", "-6"):
        with pytest.raises(RoboserveError, match="the film has 5 frames"):
            read_picture(f"{film}#{frame}")
    with pytest.raises(RoboserveError, match="number of a frame"):
        read_picture(f"{film}#last")
    text = tmp_path / "text.mp4"
    text.write_text("no film", "utf-8")
    with pytest.raises(RoboserveError, match="not an mp4 film"):
        read_picture(f"{text}#0")
    with pytest.raises(RoboserveError, match="invalid_image"):
        read_picture(str(text))
    with pytest.raises(FileNotFoundError):
        read_picture(str(tmp_path / "nowhere.png"))
