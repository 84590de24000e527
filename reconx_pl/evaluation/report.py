"""The report: one HTML file with everything in it, legible on a laptop and on a phone."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from reconx_pl.errors import BadDataError
from reconx_pl.evaluation.baselines import METHODS
from reconx_pl.evaluation.coverage import HALVES
from reconx_pl.evaluation.records import SUMMARY, Record, scene_folder
from reconx_pl.evaluation.report_notices import (
    SEES_TRUTH,
    alignment_note,
    introduction,
    problems,
    scoring_note,
    verdict,
)
from reconx_pl.files.json_files import read_json
from reconx_pl.metrics.image import DIGITS, HEADINGS, HIGHER_IS_BETTER
from reconx_pl.visualization.curves import RunCurves, fall, plot_run, read_run
from reconx_pl.visualization.html import (
    data_uri,
    duration,
    jpeg_uri,
    plural,
    settings_table,
    time_bar,
    video_figure,
    write_page,
)

log = logging.getLogger(__name__)
MODEL_LENGTH = 80  # characters of the model's description in the head line
VIDEO_LIMIT = 2 * 1024 * 1024  # bytes; a larger one is linked
Scores = Mapping[str, Mapping[str, float]]  # method -> metric -> mean
SHORT = {  # rivals in the table of scenes
    "generated": "generated",
    "two_views": "two views",
    "contexts": "contexts",
    "filled_render": "filled render",
    "filled_render_splats": "its splats",
    "depth_warp": "warped",
    "nearest_input": "nearest",
}
CLIPS = {  # captions of the videos of a scene, in their order
    "generated": "Generated clip",
    "confidence": "Confidence (yellow is trusted, violet is not)",
    "rendered": "Fly-through of the splats",
    "depth": "Depth along the fly-through (red is near, blue is far)",
}


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
        _first_pictures(out, results),
        problems(results),
        introduction(results),
        _scores(results),
        _training(runs, unread),
        _time(results),
        _scenes(out, results, pictured),
        _settings(results),
        f"<footer>reconx_pl {escape(str(results['version']))} · settings {results['config_hash'][:12]} · "
        f'<a href="{SUMMARY}">{SUMMARY}</a> holds every number of this page.</footer>',
        "</main>",
    ]
    return write_page(out / "index.html", title, body)


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


def _number(metric: str, value: float | None) -> str:
    return "–" if value is None else f"{value:.{DIGITS[metric]}f}"


def _short(model: str) -> str:
    """The start of a description that stands whole in the settings."""
    return model if len(model) <= MODEL_LENGTH else f"{model[:MODEL_LENGTH]}…"


def _head(results: Record, title: str) -> str:
    state = '<span class="good">complete</span>' if results["complete"] else '<span class="bad">not complete</span>'
    return (
        f'<header class="top"><h1>{escape(title)}</h1>'
        f'<p class="facts"><b>{results["finished"]}</b> of {plural(results["expected"], "scene")} scored, {state}'
        f" · model <code>{escape(_short(results['model']))}</code></p>"
        f"{verdict(results)}</header>"
    )


def _table(rows: Scores, metrics: Sequence[str], parts: Mapping[str, Scores] | None = None) -> str:
    """Methods x metrics; the best of each metric is marked among the methods that do not see the truth.

    ``parts`` adds a column each, of the first metric: name -> the same of this part of the pixels.
    """
    columns = [(HEADINGS[metric], metric, rows) for metric in metrics]
    columns += [(f"{HEADINGS[metrics[0]]},<br>{name}", metrics[0], part) for name, part in (parts or {}).items()]
    best = []
    for _, metric, of in columns:
        values = [scores[metric] for method, scores in of.items() if method not in SEES_TRUTH and metric in scores]
        best.append((max if HIGHER_IS_BETTER[metric] else min)(values) if values else None)
    lines = []
    for method, label in METHODS.items():
        if method not in rows:
            continue
        cells = []
        for (_, metric, of), top_value in zip(columns, best, strict=True):
            value = of.get(method, {}).get(metric)
            top = method not in SEES_TRUTH and value is not None and value == top_value
            mark = '<td class="best" title="best">' if top else '<td class="plain">'
            cells.append(f"{mark}{_number(metric, value)}</td>")
        lines.append(f"<tr{_aside(method)}><td>{escape(label)}</td>{''.join(cells)}</tr>")
    heads = "".join(f'<th scope="col">{heading}</th>' for heading, _, _ in columns)
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">Method</th>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _aside(method: str) -> str:
    return ' class="aside"' if method in SEES_TRUTH else ""


def _metrics(results: Record) -> list[str]:
    return [name for name in results["metrics"] if name not in results["absent"]]


def _scores(results: Record) -> str:
    if not results["scenes"]:
        return "<h2>Scores</h2><p>No scene has been scored.</p>"
    metrics, parts = _metrics(results), ["<h2>Scores</h2>"]
    table, held_out = results["mean"], results["mean_held_out"]
    if table:
        parts.append(_table(table, metrics, {name: of for name in HALVES if (of := results.get(f"mean_{name}"))}))
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
            "what these splats could reach with perfect frames."
        )
    return text


def _geometry(results: Record) -> str:
    """Where the clouds come from, with the scenes of each source where there are several."""
    sources = results["geometry"]
    if len(sources) == 1:
        return str(next(iter(sources)))
    return "; ".join(f"{source} ({plural(count, 'scene')})" for source, count in sources.items())


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
        image = f'<img src="{data_uri(svg, "image/svg+xml")}" alt="Loss over steps. {caption}">'
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
    scenes = max(1, len(results["scenes"]))
    return (
        f"<h2>Where the time went</h2>"
        f"{time_bar(dict(sorted(seconds.items(), key=lambda item: -item[1])))}"
        f'<p class="note">Wall clock over all scenes: {duration(total)}, {duration(total / scenes)} a scene.</p>'
    )


def _scenes(out: Path, results: Record, pictured: int) -> str:
    records = results["scenes"]
    if not records:
        return ""
    parts = ["<h2>Scenes</h2>"]
    if len(records) > 1:
        parts.append(_scene_table(records, _metrics(results)))
    parts += [_scene(out, record, _metrics(results), number) for number, record in enumerate(records[:pictured])]
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
    heads = "".join(f'<th scope="col">{HEADINGS[metric]}</th>' for metric in metrics)
    heads += "".join(f'<th scope="col">{lead.upper()},<br>{SHORT[name]}</th>' for name in rivals)
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">Scene</th>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _first_pictures(out: Path, results: Record) -> str:
    """The first scene: its contact sheet, and its page in the browser."""
    for record in results["scenes"]:
        folder, files = scene_folder(out, record["key"]), record["files"]
        if "contact_sheet" not in files:
            continue
        page = ""
        if "page" in files:
            link = f"{folder.relative_to(out).as_posix()}/{files['page']}"
            page = f'<p><a class="open" href="{link}">Open the scene</a></p>'
        return f"{page}{_sheet(folder, record)}"
    return ""


def _sheet(folder: Path, record: Record) -> str:
    alt = f"Contact sheet of {escape(record['key'])}: input, generated, ground truth, splat render and error over time"
    with Image.open(folder / record["files"]["contact_sheet"]) as sheet:
        return f'<figure><div class="sheet scroll"><img src="{jpeg_uri(sheet)}" alt="{alt}"></div></figure>'


def _scene(out: Path, record: Record, metrics: Sequence[str], number: int) -> str:
    folder, files = scene_folder(out, record["key"]), record["files"]
    relative = folder.relative_to(out).as_posix()
    name = escape(record["key"])
    parts = [
        f'<article><div class="head"><h3>{name}</h3><p class="note">{record["frames"]} frames of '
        f"{record['size'][1]} × {record['size'][0]}, gap {record['frame_gap']} · {record['gaussians']:,} Gaussians · "
        f"{duration(sum(record['seconds'].values()))}</p></div>",
        alignment_note(record),
    ]
    if "contact_sheet" in files and number:
        parts.append(_sheet(folder, record))
    elif "contact_sheet" in files:
        parts.append('<p class="note">Its contact sheet is at the top of this page.</p>')
    clips = [(files[kind], caption) for kind, caption in CLIPS.items() if kind in files]
    if clips:
        shown = "".join(
            video_figure(folder / file, f"{relative}/{file}", caption, record["key"], VIDEO_LIMIT)
            for file, caption in clips
        )
        parts.append(f'<div class="clips">{shown}</div>')
    if record["scores"]:
        halves = {name: of for name in HALVES if (of := _means(record.get(f"{name}_scores", {})))}
        table = _table(_means(record["scores"]), metrics, halves)
        parts.append(f"<details><summary>Scores of this scene</summary>{table}</details>")
    links = {"page": "the scene in the browser", "splats": "splats (.ply)", "contact_sheet": "contact sheet (.png)"}
    linked = [f'<a href="{relative}/{files[kind]}">{text}</a>' for kind, text in links.items() if kind in files]
    linked.append(f'<a href="{relative}/result.json">numbers (.json)</a>')
    return "".join(parts) + f'<p class="note">{" · ".join(linked)}</p></article>'


def _means(scores: Mapping[str, Any]) -> Scores:
    return {method: values["mean"] for method, values in scores.items()}


def _settings(results: Record) -> str:
    rows = {
        "model": results["model"],
        "version": f"reconx_pl {results['version']}",
        "settings hash": results["config_hash"],
        "geometry": _geometry(results),
        **results["config"],
    }
    return settings_table("All settings of this evaluation", rows)
