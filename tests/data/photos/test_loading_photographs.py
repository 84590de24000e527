"""Photographs as users have them: sizes, orientations, EXIF, and a clear sentence for what cannot be used."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photograph_files import exif_of, note, refused, write
from PIL import Image
from raw_scenes import picture

from reconx_pl.data.photos.headers import read_header
from reconx_pl.data.photos.photographs import load_photographs, working_size
from reconx_pl.errors import BadSceneError, ConfigurationError

# --- what is read


def test_files_as_they_are(tmp_path: Path) -> None:
    files = [write(tmp_path, "b.png"), write(tmp_path, "a.png")]
    progress: list[tuple[str, int, int | None]] = []
    found = load_photographs(files, progress=lambda *step: progress.append(step))
    assert found.images.shape == (2, 3, 64, 96) and found.images.dtype == torch.float32
    stored = np.array(Image.open(files[0]))  # the order is the user's, the pixels are those of the file
    assert torch.equal((found.images[0] * 255).round().byte().permute(1, 2, 0), torch.from_numpy(stored))
    assert found.names == ("b.png", "a.png") and found.sources == tuple(map(str, files))
    assert found.focals == (None, None) and found.lenses == (0, 0)
    assert progress == [("reading photographs", 1, 2), ("reading photographs", 2, 2)]
    assert found.notes == ("no focal length in EXIF: it is found from the photographs",)


def test_folders_in_natural_order_and_names_that_stay_apart(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        write(tmp_path / "north" / "images", f"p{number}.png", seed=1)
        write(tmp_path / "south", f"P{number}.jpg", seed=2)
    (tmp_path / "south" / "._P1.jpg").write_text("what macOS leaves on foreign disks")
    found = load_photographs([tmp_path / "north", tmp_path / "south"])
    assert [Path(source).name for source in found.sources] == [
        "p1.png",
        "p9.png",
        "p10.png",
        "P1.jpg",
        "P9.jpg",
        "P10.jpg",
    ]
    assert found.names[0] == "images_p1.png" and found.names[3] == "south_P1.jpg"
    two = write(tmp_path / "south", "P1.png", seed=3)
    stems = load_photographs([tmp_path / "south" / "P1.jpg", two]).names
    assert stems == ("south_P1.jpg", "south_P1_2.png")  # also results with another ending have names of their own


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((48, 64, 3), np.uint8)
    upright[:24, :32], upright[24:, 32:] = (255, 0, 0), (0, 0, 255)
    image = Image.fromarray(upright)
    stored = {
        1: [], 2: [Image.Transpose.FLIP_LEFT_RIGHT], 3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM], 5: [Image.Transpose.TRANSPOSE], 6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE], 8: [Image.Transpose.ROTATE_270],
    }  # fmt: skip
    for step in stored[orientation]:
        image = image.transpose(step)
    image.save(tmp_path / "turned.jpg", exif=exif_of(orientation), quality=95)
    found = load_photographs([tmp_path / "turned.jpg", write(tmp_path, "b.png", (64, 48))])
    seen = torch.from_numpy(upright).permute(2, 0, 1) / 255
    assert (found.images[0] - seen).abs().mean() < 0.03 and found.lenses == (0, 0)


def test_transparent_pixels_lie_over_white(tmp_path: Path) -> None:
    Image.new("RGBA", (96, 64), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    found = load_photographs([tmp_path / "clear.png", write(tmp_path, "b.png")])
    assert (found.images[0] == 1).all()


def test_the_shape_of_most_and_a_portrait_among_them(tmp_path: Path) -> None:
    level = [write(tmp_path, f"{number}.png", (800, 600)) for number in range(3)]
    columns = np.zeros((800, 600, 3), np.uint8)
    columns[400:404] = 255  # a line a bit below the middle, which is 400.0
    Image.fromarray(columns).save(tmp_path / "tall.png")
    found = load_photographs([*level, tmp_path / "tall.png"])
    assert found.images.shape[-2:] == (450, 600)  # 600 columns are all that the portrait has
    rows = torch.arange(450) + 0.5
    weight = found.images[3].mean((0, 2))
    assert abs(float((rows * weight).sum() / weight.sum()) - (225.0 + 2.0)) < 0.01  # the centre stays the centre
    assert note(found, "another shape") == (
        "1 of 4 photographs have another shape: cropped to the middle: tall.png (portrait, keeps 56 %)"
    )
    assert "tall.png has 600 x 800 pixels" in note(found, "would show more")


def test_working_sizes() -> None:
    assert working_size([(4000, 3000)] * 3, 1024) == (1024, 768)
    assert working_size([(3000, 4000)] * 3, 1024) == (768, 1024)
    assert working_size([(4000, 3000), (4000, 3000), (1600, 900)], 1024) == (1024, 768)
    assert working_size([(1600, 900), (1200, 1200), (1200, 900)], 4096) == (1200, 900)  # a tie: the one between
    assert working_size([(640, 480), (800, 600)], 1024) == (640, 480)  # none is enlarged
    assert working_size([(120, 90), (800, 600), (800, 600)], 1024) == (320, 240)  # unless it would spoil the others
    assert working_size([(120, 90), (100, 75)], 1024) == (100, 75)
    assert working_size([(5000, 3)] * 2, 100) == (100, 1)


def test_a_thumbnail_among_photographs_is_enlarged_and_told(tmp_path: Path) -> None:
    files = [write(tmp_path, "small.png", (64, 48)), *(write(tmp_path, f"{n}.png", (480, 360)) for n in range(2))]
    found = load_photographs(files)
    assert found.images.shape[-2:] == (240, 320)
    assert note(found, "enlarged").startswith("small.png enlarged to 320 x 240 pixels")


def test_thirty_megapixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.effect_noise((670, 448), 60).convert("RGB").resize((6720, 4480)).save(tmp_path / "IMG_1.jpg", quality=60)
    other, decoded = write(tmp_path, "b.jpg", (1500, 1000)), []
    original = Image.fromarray
    monkeypatch.setattr(Image, "fromarray", lambda array: decoded.append(array.shape) or original(array))
    found = load_photographs([tmp_path / "IMG_1.jpg", other])
    assert found.images.shape[-2:] == (683, 1024) and decoded[0] == (
        2240,
        3360,
        3,
    )  # half the size: a quarter of memory
    assert note(found, "megapixels") == (
        "IMG_1.jpg has 30.1 megapixels and was reduced to 1024 x 683 pixels, and 1 more with it"
    )


# --- lenses


def test_focal_lengths_of_exif_in_pixels_of_the_working_images(tmp_path: Path) -> None:
    phone = {"Make": "Pear", "Model": "8", "FocalLength": 4.0}
    film = write(tmp_path, "film.jpg", (400, 300), exif=exif_of(FocalLengthIn35mmFilm=26, **phone))
    plane = write(tmp_path, "plane.jpg", (400, 300), exif=exif_of(
        FocalLength=50.0, FocalPlaneXResolution=1000.0, FocalPlaneResolutionUnit=3, ExifImageWidth=4000,
        ExifImageHeight=3000))  # fmt: skip
    tall = write(tmp_path, "tall.jpg", (400, 300), exif=exif_of(6, FocalLengthIn35mmFilm=26, **phone))
    same = write(tmp_path, "same.jpg", (400, 300), exif=exif_of(FocalLengthIn35mmFilm=26, **phone))
    found = load_photographs([film, plane, same, tall], max_side=200)
    by_film = 26 * 500 / 43.2666
    # 50 mm at 100 pixels a mm and 4000 columns, in the file reduced to 400, here to 200
    expected = [by_film / 2, 50 * 100 / 20, by_film / 2, by_film * 200 / 300]  # the portrait must cover 200 columns
    assert found.focals == pytest.approx(expected, rel=1e-5)
    assert found.lenses == (0, 1, 0, 2)  # a portrait is cut otherwise than a level picture of the same phone
    assert "3 cameras" in note(found, "come from")


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"FocalLength": 0.0, "FocalLengthIn35mmFilm": 0}, ""),
        ({"FocalLength": 50.0}, ""),
        ({"FocalLength": 50.0, "FocalPlaneXResolution": 0.0}, ""),
        ({"FocalLength": 50.0, "FocalPlaneXResolution": 1000.0, "FocalPlaneResolutionUnit": 1}, ""),
        ({"FocalLengthIn35mmFilm": 9000}, "none of a camera"),
        ({"FocalLengthIn35mmFilm": 2}, "none of a camera"),
        ({"FocalLengthIn35mmFilm": 26, "ExifImageWidth": 800, "ExifImageHeight": 300}, "it was cropped"),
    ],
)
def test_focal_lengths_that_are_none(tmp_path: Path, tags: dict[str, Any], reason: str) -> None:
    files = [write(tmp_path, "a.jpg", exif=exif_of(**tags)), write(tmp_path, "b.jpg", exif=exif_of(**tags))]
    found = load_photographs(files)
    assert found.lenses == (0, 0) and found.focals == (None, None)
    if reason:
        assert reason in note(found, "EXIF was not used for a.jpg")
    else:
        assert found.notes == ("no focal length in EXIF: it is found from the photographs",)


def test_focal_lengths_that_contradict_each_other(tmp_path: Path) -> None:
    """A program that halved the picture, and its recorded size, but not the resolution of the sensor."""
    tags = {"FocalLength": 50.0, "FocalPlaneXResolution": 12000 / 36.0 * 10, "FocalPlaneResolutionUnit": 3}
    file = write(tmp_path, "a.jpg", (600, 400), exif=exif_of(FocalLengthIn35mmFilm=50, **tags))
    assert read_header(file).lens.focal == pytest.approx(50 / 43.2666 * (600**2 + 400**2) ** 0.5, rel=1e-4)


def test_damaged_exif_spoils_no_photograph(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    file = write(tmp_path, "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x92\x0a\0\x05" * 3)
    found = load_photographs([file, write(tmp_path, "b.jpg")])
    assert found.focals == (None, None) and not recwarn.list


def test_the_digest_knows_pixels_names_and_lenses(tmp_path: Path) -> None:
    one, two = write(tmp_path, "a.png"), write(tmp_path, "b.png")
    digests = {load_photographs([one, two]).digest, load_photographs([two, one]).digest}
    assert load_photographs([one, two]).digest in digests
    two.rename(tmp_path / "c.png")
    digests.add(load_photographs([one, tmp_path / "c.png"]).digest)
    Image.open(one).save(one, exif=exif_of(FocalLengthIn35mmFilm=26))
    digests.add(load_photographs([one, tmp_path / "c.png"]).digest)
    assert len(digests) == 4


# --- how many


def test_views_are_taken_evenly(tmp_path: Path) -> None:
    for number in range(66):
        write(tmp_path, f"{number}.png", (16, 16), seed=97 * number)
    found = load_photographs([tmp_path], views=3)
    assert found.names == ("0.png", "32.png", "65.png") and "3 of 66 photographs" in note(found, "evenly")
    assert len(load_photographs([tmp_path], views=99)) == 64
    message = refused([tmp_path], BadSceneError)
    assert str(tmp_path) in message and "66 photographs, at most 64" in message and "--views 64" in message
    assert "views at least 2" in refused([tmp_path], ConfigurationError, views=1)
    assert "max_side" in refused([tmp_path], ConfigurationError, max_side=0)


# --- what is refused


def test_one_photograph(tmp_path: Path) -> None:
    file = write(tmp_path, "a.jpg", exif=exif_of(FocalLengthIn35mmFilm=28))
    for source in (file, tmp_path):
        found = load_photographs([source])
        assert found.images.shape == (1, 3, 64, 96) and found.names == ("a.jpg",)
        assert found.focals[0] == pytest.approx(28 / 43.27 * math.hypot(96, 64), rel=1e-3)
    assert note(load_photographs([write(tmp_path, "b.png")]), "focal") == (
        "no focal length in EXIF: it comes with the depth"
    )
    assert "name one or more" in refused([], BadSceneError)


def test_the_same_photograph_twice(tmp_path: Path) -> None:
    files = [write(tmp_path, name) for name in ("a.png", "b.png")]
    files.append(tmp_path / "copy.png")
    files[2].write_bytes(files[0].read_bytes())
    assert refused(files, BadSceneError) == f"{files[0]} and {files[2]} are the same photograph; leave one of them out"
    assert "same photograph" in refused([files[0], files[0]], BadSceneError)


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    assert refused([write(tmp_path, "a.png"), tmp_path / "b.png"]) == (
        f"{tmp_path / 'b.png'}: no such file or folder; check the path"
    )


def test_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing")
    message = refused([tmp_path])
    assert message.startswith(f"{tmp_path}: no images here") and ".jpeg" in message
    (tmp_path / "IMG_1.HEIC").write_bytes(b"1")
    assert "IMG_1.HEIC and its like are not read: convert them to JPEG" in refused([tmp_path])
    write(tmp_path / "both", "a.png"), write(tmp_path / "both", "b.png")
    (tmp_path / "both" / "IMG_2.heic").write_bytes(b"1")
    assert "1 HEIC files in" in note(load_photographs([tmp_path / "both"]), "passed over")
    (tmp_path / "walk.mp4").write_bytes(b"1")
    assert f"name the file: {tmp_path / 'walk.mp4'}" in refused([tmp_path])


def file_of(folder: Path, name: str) -> Path:
    """A file that looks like a photograph and is none that can be used."""
    file, good = folder / name, write(folder, "good.jpg")
    match name:
        case "text.jpg":
            file.write_text("this is a text, not a photograph")
        case "cut.jpg":
            file.write_bytes(good.read_bytes()[:-900])
        case "cut.png":
            file.write_bytes(write(folder, "good.png").read_bytes()[:-900])
        case "empty.jpg":
            file.write_bytes(b"")
        case "phone.heic" | "phone.jpg":
            file.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
        case "dance.gif":
            picture(1).save(file, save_all=True, append_images=[picture(2), picture(3)])
        case "deep.png":
            Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(file)
        case "raw.NEF":
            file.write_bytes(good.read_bytes())
    return file


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("text.jpg", r"not an image, whatever its name says; leave it out, or save the photograph again"),
        ("cut.jpg", r"damaged, or it ends early \(.*truncated.*\); copy it again, or leave it out"),
        ("cut.png", r"damaged, or it ends early \(.*\); copy it again, or leave it out"),
        ("empty.jpg", r"an empty file; copy it again"),
        ("phone.heic", r"HEIC is not read; convert it to JPEG \(heif-convert phone.heic phone.jpg\)"),
        ("phone.jpg", r"HEIC is not read; convert it to JPEG"),
        (
            "dance.gif",
            r"an animated GIF of 3 pictures .* \(ffmpeg -i dance.gif dance.mp4\), or give its pictures as PNG",
        ),
        ("deep.png", r"pixels of type I;16, more than 8 bits; save it as JPEG or PNG"),
        ("raw.NEF", r"raw files of a camera are not read; develop it and save it as JPEG"),
    ],
)
def test_files_that_are_no_photographs(tmp_path: Path, name: str, sentence: str) -> None:
    file = file_of(tmp_path, name)
    message = refused([write(tmp_path, "a.png"), file])
    assert message.startswith(f"{file}: ") and re.search(sentence, message), message


def test_a_still_gif_and_a_picture_with_a_preview_are_photographs(tmp_path: Path) -> None:
    picture(1, 64, 96).save(tmp_path / "still.gif")
    picture(2, 64, 96).save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[picture(3)])
    assert load_photographs([tmp_path / "still.gif", tmp_path / "phone.jpg"]).images.shape == (2, 3, 64, 96)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, opened = write(tmp_path, "a.png"), Path.open

    def locked(path: Path, *mode: str) -> io.IOBase:
        if path == file:
            raise PermissionError(13, "Permission denied")
        return opened(path, *mode)  # type: ignore[return-value, call-overload]

    monkeypatch.setattr(Path, "open", locked)
    assert refused([write(tmp_path, "b.png"), file]) == (
        f"{file}: may not be read (Permission denied); allow it: chmod u+r {file}"
    )


def test_pictures_beyond_the_limit_of_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    files = [write(tmp_path, "a.png", (200, 100)), write(tmp_path, "b.png", (200, 100))]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12_000)
    assert len(load_photographs(files)) == 2 and not recwarn.list  # large, and all the same welcome
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6_000)
    message = refused(files)
    assert message.startswith(f"{files[0]}: 0 megapixels is beyond what Pillow opens") and "save it smaller" in message
