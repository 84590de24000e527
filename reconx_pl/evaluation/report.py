"""The report: one HTML file with everything in it, legible on a laptop and on a phone."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from reconx_pl.errors import BadDataError
from reconx_pl.evaluation.baselines import METHODS
from reconx_pl.evaluation.curves import RunCurves, fall, plot_run, read_run
from reconx_pl.evaluation.metrics import HIGHER_IS_BETTER
from reconx_pl.evaluation.records import SUMMARY, Record, read_json, scene_folder
from reconx_pl.evaluation.report_notices import alignment_note, introduction, problems, scoring_note
from reconx_pl.evaluation.report_style import STYLE
from reconx_pl.whole_file import written_whole

log = logging.getLogger(__name__)
MODEL_LENGTH = 80  # characters of the model's description in the head line
VIDEO_LIMIT = 2 * 1024 * 1024  # bytes; a larger one is linked
METRIC_HEADS = {"psnr": "PSNR, dB ↑", "ssim": "SSIM ↑", "lpips": "LPIPS ↓"}
DIGITS = {"psnr": 2, "ssim": 3, "lpips": 3}
SHORT = {  # rivals in the table of scenes
    "painted": "painted",
    "two_views": "two views",
    "contexts": "contexts",
    "depth_warp": "warped",
    "nearest_input": "nearest",
}
APART = {"ceiling", "reconx_refined"}  # see the truth: never the best of the table
CLIPS = {  # captions of the videos of a scene, in their order
    "painted": "Painted clip",
    "confidence": "Confidence (yellow is trusted, violet is not)",
    "rendered": "Flight through the splats",
    "depth": "Depth along the flight (red is near, blue is far)",
}
STAGE_COLORS = ("#2b6cb0", "#6ba3d6", "#c05621", "#e0a458", "#5a8f69", "#8d6cab", "#a3a9b5", "#d98880", "#4a5568")


def write_report(
    out: str | Path,
    results: Record | None = None,
    training_logs: Sequence[str | Path | RunCurves] | None = None,
    title: str = "ReconX: scenes from two views",
    pictured: int = 24,
) -> Path:
    """Write ``out/index.html``.

    Args:
        out: folder of the evaluation, with results.json and scenes/.
        results: what ``evaluate_scenes`` returned; None reads results.json.
        training_logs: TensorBoard folders, one a training stage, in order, or curves that were read before. A folder
            without curves is named in the report; it does not cost the evaluation its report.
        title: head line.
        pictured: scenes shown with pictures; the others are in the table of scenes only.

    Returns:
        the path of the file.

    Raises:
        BadDataError: no results there.
    """
    out = Path(out)
    results = results if results is not None else read_json(out / SUMMARY)
    if results is None:
        raise BadDataError(f"{out / SUMMARY} is missing or damaged; run the evaluation first")
    runs, unread = _curves(training_logs or [])
    body = [
        _head(results, title),
        "<main>",
        problems(results),
        _scores(results),
        _training(runs, unread),
        _time(results),
        _scenes(out, results, pictured),
        _settings(results),
        f"<footer>reconx_pl {escape(str(results['version']))} · settings {results['config_hash'][:12]} · "
        f'<a href="{SUMMARY}">{SUMMARY}</a> holds every number of this page.</footer>',
        "</main>",
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )
    path = out / "index.html"
    with written_whole(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return path


def _curves(logs: Sequence[str | Path | RunCurves]) -> tuple[list[RunCurves], list[str]]:
    """The curves that can be read, and why others cannot."""
    runs, unread = [], []
    for entry in logs:
        try:
            runs.append(entry if isinstance(entry, RunCurves) else read_run(entry))
        except BadDataError as error:
            log.warning("the report goes without these loss curves: %s", error)
            unread.append(str(error).replace(str(Path.home()), "~"))  # reports are passed on
    return runs, unread


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _number(metric: str, value: float | None) -> str:
    return "–" if value is None else f"{value:.{DIGITS[metric]}f}"


def _seconds(value: float) -> str:
    if value >= 120:
        return f"{int(value // 60)} min {int(value % 60)} s"
    return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _short(model: str) -> str:
    """The start of a description that stands whole in the settings."""
    return model if len(model) <= MODEL_LENGTH else f"{model[:MODEL_LENGTH]}…"


def _head(results: Record, title: str) -> str:
    state = '<span class="good">complete</span>' if results["complete"] else '<span class="bad">not complete</span>'
    return (
        f'<header class="top"><h1>{escape(title)}</h1>'
        f'<p class="facts"><b>{results["finished"]}</b> of {_plural(results["expected"], "scene")} scored, {state}'
        f" · model <code>{escape(_short(results['model']))}</code></p>"
        f"{introduction(results)}</header>"
    )


def _table(rows: Mapping[str, Mapping[str, float]], metrics: Sequence[str]) -> str:
    """Methods x metrics; the best of each metric is marked among the methods that do not see the truth."""
    best = {}
    for metric in metrics:
        values = [scores[metric] for method, scores in rows.items() if method not in APART and metric in scores]
        if values:
            best[metric] = (max if HIGHER_IS_BETTER[metric] else min)(values)
    lines = []
    for method, label in METHODS.items():
        if method not in rows:
            continue
        cells = []
        for metric in metrics:
            value = rows[method].get(metric)
            top = method not in APART and value is not None and value == best[metric]
            mark = '<td class="best" title="best">' if top else '<td class="plain">'
            cells.append(f"{mark}{_number(metric, value)}</td>")
        lines.append(f"<tr{_aside(method)}><td>{escape(label)}</td>{''.join(cells)}</tr>")
    heads = "".join(f'<th scope="col">{METRIC_HEADS[metric]}</th>' for metric in metrics)
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">Method</th>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _aside(method: str) -> str:
    return ' class="aside"' if method in APART else ""


def _metrics(results: Record) -> list[str]:
    return [name for name in results["metrics"] if name not in results["absent"]]


def _scores(results: Record) -> str:
    if not results["scenes"]:
        return "<h2>Scores</h2><p>No scene has been scored.</p>"
    metrics, parts = _metrics(results), ["<h2>Scores</h2>"]
    table, held_out = results["mean"], results["mean_held_out"]
    if table:
        parts.append(_table(table, metrics))
        parts.append(f'<p class="note">{_how(results, "ceiling" in table)}</p>')
    if held_out:
        parts.append("<h3>Held-out views beside the clip</h3>")
        parts.append(_table(held_out, metrics))
    return "".join(parts)


def _how(results: Record, ceiling: bool) -> str:
    text = scoring_note(results, _geometry(results))
    if ceiling:
        text += (
            " The ceiling is fitted to the true even frames and scored on the odd ones only: "
            "what these splats could reach with perfect painting."
        )
    return text


def _geometry(results: Record) -> str:
    """Where the clouds come from, with the scenes of each source where there are several."""
    sources = results["geometry"]
    if len(sources) == 1:
        return str(next(iter(sources)))
    return "; ".join(f"{source} ({_plural(count, 'scene')})" for source, count in sources.items())


def _training(runs: Sequence[RunCurves], unread: Sequence[str]) -> str:
    figures = []
    for run in runs:
        svg = plot_run(run)
        if svg is None:
            continue
        falls = [
            f"{what} {fall(series[1])[0]:.4g} → {fall(series[1])[1]:.4g}"
            for what, series in (("training", run.train), ("validation", run.validation))
            if series is not None and len(series[1]) > 1
        ]
        caption = escape(f"{run.name}: " + ", ".join(falls))
        image = f'<img src="{_data_uri(svg, "image/svg+xml")}" alt="Loss over steps. {caption}">'
        figures.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    notices = "".join(
        f'<div class="box warn"><p><b>No loss curves of a run:</b> {escape(reason)}</p></div>' for reason in unread
    )
    if not figures:
        return f"<h2>Training</h2>{notices}" if notices else ""
    return (
        f'<h2>Training</h2>{notices}<div class="curves">{"".join(figures)}</div>'
        '<p class="note">Loss over steps; the figures below each plot are means of its first and its last tenth.</p>'
    )


def _time(results: Record) -> str:
    seconds = {stage: value for stage, value in results["seconds"].items() if value > 0}
    total = sum(seconds.values())
    if not total:
        return ""
    bars, legend = [], []
    for index, (stage, value) in enumerate(sorted(seconds.items(), key=lambda item: -item[1])):
        color = STAGE_COLORS[index % len(STAGE_COLORS)]
        bars.append(
            f'<span style="width:{100 * value / total:.2f}%;background:{color}" title="{escape(stage)}"></span>'
        )
        share = f"{_seconds(value)}, {value / total:.0%}"
        legend.append(f'<li><i style="background:{color}"></i>{escape(stage)} <span>{share}</span></li>')
    scenes = max(1, len(results["scenes"]))
    return (
        f"<h2>Where the time went</h2>"
        f'<div class="time" role="img" aria-label="Share of each stage">{"".join(bars)}</div>'
        f'<ul class="legend">{"".join(legend)}</ul>'
        f'<p class="note">Wall clock over all scenes: {_seconds(total)}, {_seconds(total / scenes)} a scene.</p>'
    )


def _scenes(out: Path, results: Record, pictured: int) -> str:
    records = results["scenes"]
    if not records:
        return ""
    parts = ["<h2>Scenes</h2>"]
    if len(records) > 1:
        parts.append(_scene_table(records, _metrics(results)))
    parts += [_scene(out, record, _metrics(results)) for record in records[:pictured]]
    if len(records) > pictured:
        parts.append(f'<p class="note">Pictures of the first {pictured} scenes; the others are in scenes/.</p>')
    return "".join(parts)


def _scene_table(records: Sequence[Record], metrics: Sequence[str]) -> str:
    """One row a scene, the method's scores and the PSNR of its rivals."""
    scored = {method for record in records for method in (record["scores"] or record["held_out_scores"])}
    rivals = [name for name in SHORT if name in scored]
    lead, lines = metrics[0] if metrics else "psnr", []
    for record in records:
        scores = record["scores"] or record["held_out_scores"]
        cells = [_number(metric, scores["reconx"]["mean"].get(metric)) for metric in metrics]
        cells += [_number(lead, scores.get(method, {}).get("mean", {}).get(lead)) for method in rivals]
        lines.append(f"<tr><td>{escape(record['key'])}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    heads = "".join(f'<th scope="col">{METRIC_HEADS[metric]}</th>' for metric in metrics)
    heads += "".join(f'<th scope="col">{lead.upper()},<br>{SHORT[name]}</th>' for name in rivals)
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">Scene</th>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _scene(out: Path, record: Record, metrics: Sequence[str]) -> str:
    folder, files = scene_folder(out, record["key"]), record["files"]
    relative = folder.relative_to(out).as_posix()
    name = escape(record["key"])
    parts = [
        f'<article><div class="head"><h3>{name}</h3><p class="note">{record["frames"]} frames of '
        f"{record['size'][1]} × {record['size'][0]}, gap {record['frame_gap']} · {record['gaussians']:,} Gaussians · "
        f"{_seconds(sum(record['seconds'].values()))}</p></div>",
        alignment_note(record),
    ]
    if "contact_sheet" in files:
        path = folder / files["contact_sheet"]
        alt = f"Contact sheet of {name}: input, generated, ground truth, splat render and error over time"
        image = f'<img src="{_data_uri(_jpeg(path), "image/jpeg")}" alt="{alt}">'
        parts.append(f'<figure><div class="sheet scroll">{image}</div></figure>')
    clips = [(files[kind], caption) for kind, caption in CLIPS.items() if kind in files]
    if clips:
        shown = "".join(_clip(folder / file, f"{relative}/{file}", caption, name) for file, caption in clips)
        parts.append(f'<div class="clips">{shown}</div>')
    if record["scores"]:
        rows = {method: scores["mean"] for method, scores in record["scores"].items()}
        parts.append(f"<details><summary>Scores of this scene</summary>{_table(rows, metrics)}</details>")
    links = {"splats": "splats (.ply)", "contact_sheet": "contact sheet (.png)"}
    linked = [f'<a href="{relative}/{files[kind]}">{text}</a>' for kind, text in links.items() if kind in files]
    linked.append(f'<a href="{relative}/result.json">numbers (.json)</a>')
    return "".join(parts) + f'<p class="note">{" · ".join(linked)}</p></article>'


def _jpeg(path: Path) -> bytes:
    """A picture made small enough to be embedded; the lossless one is linked."""
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(buffer, "JPEG", quality=90, optimize=True)
    return buffer.getvalue()


def _clip(path: Path, link: str, caption: str, scene: str) -> str:
    if path.stat().st_size > VIDEO_LIMIT:
        return f'<figure><figcaption><a href="{link}">{caption} (mp4)</a></figcaption></figure>'
    source = _data_uri(path.read_bytes(), "video/mp4")
    return (
        f'<figure><video src="{source}" autoplay loop muted playsinline controls aria-label="{caption} of {scene}">'
        f'<a href="{link}">{caption} (mp4)</a></video><figcaption>{caption}</figcaption></figure>'
    )


def _settings(results: Record) -> str:
    rows = {
        "model": results["model"],
        "version": f"reconx_pl {results['version']}",
        "settings hash": results["config_hash"],
        "geometry": _geometry(results),
        **_flat(results["config"]),
    }
    cells = "".join(
        f"<tr><td>{escape(name)}</td><td><code>{escape(str(value))}</code></td></tr>" for name, value in rows.items()
    )
    return (
        "<h2>Settings</h2><details><summary>All settings of this evaluation</summary>"
        f'<div class="scroll"><table class="settings"><tbody>{cells}</tbody></table></div></details>'
    )


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat
