"""Pictures in files: how they are decoded, and the processes that do it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtlcli.data.imagefiles import Shape, decode


def test_large_pictures_keep_what_they_show(tmp_path):
    picture = np.zeros((800, 600, 3), np.uint8)
    picture[:400, :, 0] = picture[400:, :, 2] = 250
    Image.fromarray(picture).save(tmp_path / "x.jpg", quality=95)
    pixels = decode(str(tmp_path / "x.jpg"), Shape(3, 20, 10)).pixels
    assert pixels.shape == (3, 20, 10)
    assert abs(int(pixels[0, 2, 5]) - 250) < 4
    assert abs(int(pixels[2, 17, 5]) - 250) < 4


def test_exif_turns_pictures_upright(tmp_path):
    picture = np.zeros((10, 20, 3), np.uint8)
    picture[:, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(picture).save(tmp_path / "x.png", exif=exif)
    pixels = decode(str(tmp_path / "x.png"), Shape(3, 20, 10)).pixels
    assert (pixels[0, :8] == 255).all()
    assert (pixels[0, 12:] == 0).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_kinds_of_pixels(tmp_path, mode):
    name = str(tmp_path / ("x.tif" if mode == "CMYK" else "x.png"))
    Image.new("RGB", (6, 6), (255, 255, 255)).convert(mode).save(name)
    for channels in (1, 3):
        found = decode(name, Shape(channels, 4, 4))
        assert found.fault is None
        assert (found.pixels > 250).all()


def test_more_than_eight_bits_are_refused(tmp_path):
    Image.fromarray(np.full((6, 6), 40_000, np.uint16)).save(tmp_path / "x.png")
    assert "8 bits" in decode(str(tmp_path / "x.png"), Shape(1, 4, 4)).fault


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "x.png")
    for limit in (9_000, 1_000):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert "exceeds limit" in decode(str(tmp_path / "x.png"), Shape(1, 4, 4)).fault


def test_a_program_that_fails_beside_its_workers_ends(tmp_path: Path) -> None:
    """They ignore the signal that ends them, so that a batch in work is finished; nobody is to wait for them then."""
    for n in range(40):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{n}.png")
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from mtlcli.data.imagefiles import Files, Shape, run\n"
        "paths = sorted(map(str, Path(sys.argv[1]).glob('*.png')))\n"
        "kept = run(Files(paths, Shape(3, 8, 8), True), [[n] for n in range(40)], 2)\n"
        "next(kept)\nraise SystemExit(3)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (3, "")
