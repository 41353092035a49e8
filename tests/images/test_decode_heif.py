"""Images of phones: read with a package of their own, or refused with its name."""

import sys
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from dcmpl.errors import DataError
from dcmpl.images.decode import decode, decode_bytes, read_image


def ramp_of_colours() -> np.ndarray:
    """Smooth, so that lossy coding changes little."""
    y, x = np.mgrid[0:40, 0:64]
    return np.stack([3 * x, 5 * y, 80 + x + y], axis=2).astype(np.uint8)


@pytest.fixture
def heic(tmp_path: Path) -> Path:
    path = tmp_path / "a.heic"
    pillow_heif.from_pillow(Image.fromarray(ramp_of_colours())).save(path, quality=95)
    return path


def test_heif_is_read(heic: Path) -> None:
    difference = read_image(heic).astype(int) - ramp_of_colours()
    assert np.abs(difference).mean() < 3  # of 255, lossy


def test_heif_in_memory_is_read_as_the_file(heic: Path) -> None:
    found = decode_bytes(heic.read_bytes(), "some name")
    assert np.array_equal(found.pixels, read_image(heic))


def test_heif_under_another_name_is_read(heic: Path) -> None:
    other = heic.rename(heic.with_suffix(".png"))
    assert read_image(other).shape == (40, 64, 3)


def test_transparent_heif_is_laid_on_white(tmp_path: Path) -> None:
    path = tmp_path / "a.heic"
    pillow_heif.from_pillow(Image.new("RGBA", (64, 64), (0, 0, 0, 0))).save(path)
    found = decode(path)
    assert np.unique(found.pixels).tolist() == [255]
    assert found.notes == ("transparent parts laid on white",)


@pytest.mark.parametrize("keep", [12, 100, 400, -5])
def test_truncated_heif_is_one_sentence_that_names_it(heic: Path, keep: int) -> None:
    heic.write_bytes(heic.read_bytes()[:keep])
    with pytest.raises(DataError) as caught:
        read_image(heic)
    assert str(caught.value).startswith(f"expected an image that can be decoded, got {heic}: ")
    assert "\n" not in str(caught.value)


def test_large_heif_is_refused_before_it_is_decoded(
    heic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoded(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("dcmpl.images.decode.MAX_PIXELS", 40 * 64 - 1)
    monkeypatch.setattr("pillow_heif.HeifFile.to_pillow", decoded)
    with pytest.raises(DataError, match="expected at most 2559 pixels"):
        read_image(heic)


def test_heif_without_its_package_says_what_to_install(
    heic: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DataError) as caught:
        read_image(heic)
    assert str(caught.value) == (
        f"expected pillow-heif for {heic}, got none: pip install 'dcmpl-agiqa[heif]'"
    )
