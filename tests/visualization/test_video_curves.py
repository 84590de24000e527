"""Videos that play, loss curves that are read back, contact sheets with every row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reconx_pl.errors import BadDataError, ConfigurationError
from reconx_pl.visualization.contact_sheet import SheetRow, contact_sheet, error_image, sheet_font, spread
from reconx_pl.visualization.curves import fall, plot_run, read_run, smooth
from reconx_pl.visualization.video import read_mp4, write_mp4


def test_a_video_comes_back(tmp_path: Path) -> None:
    ramp = torch.linspace(0, 1, 5)[:, None, None, None].expand(5, 3, 32, 48)
    path = write_mp4(ramp, tmp_path / "deep" / "clip.mp4", fps=7.5)
    frames, rate = read_mp4(path)
    assert frames.shape == (5, 32, 48, 3) and rate == pytest.approx(7.5)
    np.testing.assert_allclose(frames.mean((1, 2, 3)) / 255, torch.linspace(0, 1, 5), atol=0.02)
    assert [entry.name for entry in path.parent.iterdir()] == ["clip.mp4"]  # nothing half-written left behind


def test_a_video_is_what_browsers_play(tmp_path: Path) -> None:
    import av

    path = write_mp4(np.zeros((2, 16, 16, 3), np.uint8), tmp_path / "clip.mp4", fps=8)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
    head = path.read_bytes()
    assert head.index(b"moov") < head.index(b"mdat")  # starts before it is loaded to the end


def test_odd_sizes_are_extended_not_cut(tmp_path: Path) -> None:
    frames, _ = read_mp4(write_mp4(torch.full((2, 3, 31, 45), 0.5), tmp_path / "odd.mp4", fps=4))
    assert frames.shape[1:3] == (32, 46)
    np.testing.assert_allclose(frames / 255, 0.5, atol=0.02)


def test_bad_videos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="frame rate"):
        write_mp4(torch.zeros(2, 3, 16, 16), tmp_path / "a.mp4", fps=0)
    with pytest.raises(ConfigurationError, match="uint8"):
        write_mp4(torch.zeros(3, 16, 16), tmp_path / "a.mp4", fps=4)
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(BadDataError, match="text.mp4"):
        read_mp4(tmp_path / "text.mp4")


def log_run(folder: Path, steps: range, value: float) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for step in steps:
            writer.add_scalar("train/loss", value / (1 + step), step)
            if step % 5 == 0:
                writer.add_scalar("val/loss", 2 * value / (1 + step), step)


def test_curves_are_read_and_a_resumed_run_replaces_what_it_did_again(tmp_path: Path) -> None:
    log_run(tmp_path / "stage1" / "version_0", range(0, 20), 1.0)
    log_run(tmp_path / "stage1" / "version_1", range(10, 30), 100.0)
    run = read_run(tmp_path / "stage1" / "version_1")
    assert run.name == "stage1" and run.train is not None
    np.testing.assert_array_equal(run.train[0], np.arange(10, 30))
    both = read_run(tmp_path / "stage1", name="both")
    assert both.train is not None and both.validation is not None
    np.testing.assert_array_equal(both.train[0], np.arange(30))
    np.testing.assert_allclose(both.train[1][:10], 1 / np.arange(1, 11), rtol=1e-5)
    np.testing.assert_allclose(both.train[1][10:], 100 / np.arange(11, 31), rtol=1e-5)
    np.testing.assert_array_equal(both.validation[0], [0, 5, 10, 15, 20, 25])
    assert (plot_run(both) or b"").lstrip().startswith(b"<?xml")


def test_a_folder_without_events_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match=str(tmp_path)):
        read_run(tmp_path)


def test_smoothing_keeps_lines_and_fall_reads_the_ends() -> None:
    line = np.linspace(3, 1, 101)
    np.testing.assert_allclose(smooth(line), line)
    assert fall(line) == (pytest.approx(line[:10].mean()), pytest.approx(line[-10:].mean()))


def test_sheet_places_every_image_and_marks_errors() -> None:
    truth, wrong = torch.full((3, 16, 24), 0.5), torch.full((3, 16, 24), 0.6)
    error = error_image(wrong, truth, gain=5.0)
    assert error.shape == (3, 16, 24) and error.std(dim=(1, 2)).max() < 1e-6
    assert error_image(truth, truth, gain=5.0).max() < 0.05  # no error is the dark end of the colour map
    red = torch.zeros(3, 16, 24)
    red[0] = 1.0
    sheet = contact_sheet(
        [SheetRow("input", [red, None]), SheetRow("error\nof something", [error, error])], ["a", "b"], gain=5.0, cell=96
    )
    pixels = np.asarray(sheet)
    assert isinstance(sheet, Image.Image)
    assert (pixels == [255, 0, 0]).all(-1).sum() == 96 * 64  # once, at its place, enlarged four times
    with pytest.raises(ConfigurationError, match="needs 2 images"):
        contact_sheet([SheetRow("input", [red])], ["a", "b"])
    with pytest.raises(ConfigurationError, match="one size"):
        contact_sheet([SheetRow("input", [red, red[:, :8]])], ["a", "b"])


def test_the_labels_have_their_glyphs() -> None:
    font = sheet_font(20)
    missing = bytes(font.getmask("\uffff"))
    assert all(bytes(font.getmask(letter)) != missing for letter in "×≥")


def test_spread_keeps_the_ends() -> None:
    assert spread(4, 8) == [0, 1, 2, 3]
    assert spread(30, 6) == [0, 6, 12, 17, 23, 29]
