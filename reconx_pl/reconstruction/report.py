"""The report of a reconstruction: one HTML file that answers what came out, how it looks and what it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from reconx_pl.reconstruction import files, fitting, generation
from reconx_pl.reconstruction.files import REPORT, STAGE_FOLDER, SUMMARY
from reconx_pl.reconstruction.report_content import Content
from reconx_pl.reconstruction.report_pictures import flythrough, generated, loss, seen_from_above, views
from reconx_pl.reconstruction.settings import FIT, FLYTHROUGH, GENERATION, GEOMETRY
from reconx_pl.visualization.html import duration, plural, settings_table, time_bar, write_page

_ABOUT = {  # what is in the folder: the stage that makes it, and what it is
    fitting.PAGE: (FIT, "the scene in any browser, by a double click"),
    fitting.SCENE: (FIT, "the scene, 3D Gaussians in the layout that every viewer of splats reads"),
    fitting.VIDEO: (FLYTHROUGH, "fly-through of the scene"),
    fitting.DEPTH_VIDEO: (FLYTHROUGH, "its depth"),
    generation.VIDEO: (GENERATION, "photographs and generated frames in their order"),
    files.CAMERAS: (GEOMETRY, "cameras of the photographs, as nerfstudio's transforms.json and in our own layout"),
    f"{files.MODEL}/0": (GEOMETRY, "the same cameras and the points as COLMAP's text model"),
    files.IMAGES: (GEOMETRY, "the photographs as they were used: upright, of one size"),
    files.CLOUD: (GEOMETRY, "the points, a plain coloured cloud"),
    SUMMARY: (GEOMETRY, "every number of this page"),
    STAGE_FOLDER: (GEOMETRY, "finished stages, so that a next run need not repeat them; may be deleted"),
}
_STYLE = """
h1, p, li, figcaption { overflow-wrap: anywhere; }
.files { list-style: none; padding: 0; margin: 0 0 16px; }
.files li { padding: 7px 0; border-bottom: 1px solid var(--line); }
.files a { font-weight: 600; margin-right: 8px; }
.files span { color: var(--quiet); font-size: 0.92rem; }
.box li { margin-bottom: 4px; }
.clips.wide figure { flex: 1 1 320px; max-width: 640px; }
.clips.wide video { width: 100%; image-rendering: auto; }
.heads, .trio { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 6px 12px; }
.heads { color: var(--quiet); font-size: 0.84rem; margin-top: 14px; }
.trio { margin: 0 0 18px; }
.trio img, .gallery img { display: block; width: 100%; height: auto; border-radius: 4px; }
.trio figcaption { grid-column: 1 / -1; margin: 0; }
.trio b { color: var(--ink); font-weight: 600; margin-right: 6px; }
.scale { margin-bottom: 12px; display: flex; align-items: center; gap: 8px; color: var(--quiet); font-size: 0.84rem; }
.scale i { width: 140px; height: 10px; border-radius: 2px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 14px; }
.gallery figure { margin: 0; }
.above { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 12px 36px; }
.above figure { margin: 0; }
.names { columns: 2; padding-left: 2em; margin: 0; font-size: 0.9rem; }
.plan { display: block; width: 100%; height: auto; border: 1px solid var(--line); border-radius: 6px; }
.plan .dots { fill: #a3a9b5; }
.plan .way { fill: none; stroke: #c05621; stroke-width: 1.5; stroke-linejoin: round; }
.plan .camera { fill: #2b6cb0; fill-opacity: 0.12; stroke: #2b6cb0; stroke-width: 1; stroke-linejoin: round; }
.plan .camera.first { fill-opacity: 0.55; }
.plan .eye { fill: #1a1c21; }
.plan text { font-size: 12px; font-weight: 600; fill: #1a1c21; text-anchor: middle; dominant-baseline: central;
  paint-order: stroke; stroke: #fff; stroke-width: 3px; }
.says dt { font-weight: 600; margin-top: 10px; }
.says dd { margin: 0; color: var(--quiet); font-size: 0.92rem; overflow-wrap: anywhere; max-width: 54em; }
@media (max-width: 640px) {
  .heads { display: none; }
  .trio { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .trio figcaption { grid-column: auto; }
  .above { grid-template-columns: minmax(0, 1fr); }
  table.stages th:first-child, table.stages td:first-child { min-width: 7em; }
}
"""

_NON_COMMERCIAL = {  # by what is in the identity of an estimator
    "dust3r": "DUSt3R's released weights are under CC BY-NC-SA 4.0",
    "da3-large": "DA3-LARGE's weights are under CC BY-NC 4.0",
}


def write_report(out: Path, summary: Mapping[str, Any]) -> Path:
    """Write ``out/report.html``, which needs nothing beside it but to follow its links.

    Args:
        out: folder of the reconstruction.
        summary: what its reconstruction.json holds; stages that it does not name are shown as not there.

    Returns:
        the path of the file.

    Raises:
        BadDataError, BadCameraError: cameras.json, or a file of a stage, is damaged; names it.
    """
    content = Content(Path(out), summary)
    body = [
        _head(content),
        "<main>",
        _scene(content),
        flythrough(content),
        views(content),
        generated(content),
        _files(content),
        seen_from_above(content),
        loss(content),
        _stages(content),
        _makers(content),
        settings_table("All settings of this reconstruction", summary["settings"]),
        f"<footer>reconx_pl {escape(str(summary['version']))} · "
        f'<a href="{SUMMARY}">{SUMMARY}</a> holds every number of this page.</footer>',
        "</main>",
    ]
    return write_page(content.out / REPORT, f"{summary['name']}: reconstruction", body, _STYLE)


def _head(content: Content) -> str:
    summary = content.summary
    facts = [f"<b>{plural(len(summary['views']), 'photograph')}</b>"]
    if content.fit:
        facts.append(f"<b>{content.fit['gaussians']:,}</b> Gaussians")
    if summary["view_generator"] is not None and GENERATION in content.stages:
        facts.append(f"frames by <code>{escape(str(summary['view_generator']).partition(',')[0])}</code>")
    facts.append(f"{duration(sum(record['seconds'] for record in content.stages.values()))} on {_device(content)}")
    state = '<span class="bad">no scene yet</span>' if content.missing else '<span class="good">complete</span>'
    box = ""
    if content.missing:
        last = escape(summary["last_stage"])
        box = (
            f'<div class="box warn"><p><b>This run ended after {last}, as it was asked to.</b> '
            f"There is: {', '.join(content.stages)}. Not there: {', '.join(content.missing)}.</p>"
            "<p>In this folder, <code>reconx reconstruct --resume -o .</code> goes on from here.</p></div>"
        )
    return (
        f'<header class="top"><h1>{escape(summary["name"])}</h1>'
        f'<p class="facts">{" · ".join(facts)} · {state}</p>{box}</header>'
    )


def _scene(content: Content) -> str:
    if content.result(FIT, fitting.PAGE) is None:
        return ""
    return f'<p><a class="open" href="{fitting.PAGE}">Open the scene</a></p>'


def _device(content: Content) -> str:
    return {"cuda": "a GPU", "cpu": "the CPU"}.get(content.summary["device"], escape(str(content.summary["device"])))


def _files(content: Content) -> str:
    rows = []
    for name, (stage, about) in _ABOUT.items():
        path = content.result(stage, name)
        if path is None:
            continue
        size = f" · {_bytes(path.stat().st_size)}" if path.is_file() and name != SUMMARY else ""
        ending = "/" if path.is_dir() else ""
        rows.append(f'<li><a href="{quote(name)}{ending}">{name}{ending}</a><span>{about}{size}</span></li>')
    opened = []
    if content.result(FIT, fitting.SCENE):
        opened += [
            f"<li>In the browser: open <code>{fitting.PAGE}</code>. With all its Gaussians, from this folder: "
            f"<code>reconx view {fitting.SCENE} --cameras .</code></li>",
            f"<li>In any viewer of Gaussian splats: open <code>{fitting.SCENE}</code>.</li>",
        ]
    if content.result(GEOMETRY, files.CAMERAS):
        opened += [
            f"<li>In nerfstudio: <code>ns-train splatfacto --data {files.CAMERAS}</code></li>",
            f"<li>In COLMAP: File, Import model, <code>{files.MODEL}/0</code>.</li>",
        ]
    how = f'<div class="box"><p><b>How to open it</b></p><ul>{"".join(opened)}</ul></div>' if opened else ""
    return f'<h2>What came out</h2><ul class="files">{"".join(rows)}</ul>{how}'


def _stages(content: Content) -> str:
    seconds = {name: float(record["seconds"]) for name, record in content.stages.items()}
    with_gpu = any(record["peak_device_memory"] is not None for record in content.stages.values())
    lines, said = [], []
    for name, record in content.stages.items():
        cells = [duration(record["seconds"]), _bytes(record["peak_memory"])]
        if with_gpu:
            cells.append("–" if record["peak_device_memory"] is None else _bytes(record["peak_device_memory"]))
        cells.append("kept" if record["reused"] else "now")
        lines.append(f"<tr><td>{name}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
        if record["notes"]:
            notes = "".join(f"<dd>{escape(note)}</dd>" for note in record["notes"])
            said.append(f"<dt>{name}</dt>{notes}")
    heads = ["Stage", "Time", "Memory", *(["GPU memory"] if with_gpu else []), "Made"]
    head = "".join(f'<th scope="col">{text}</th>' for text in heads)
    spent = sum(record["seconds"] for record in content.stages.values() if not record["reused"])
    bar = time_bar(seconds) if sum(seconds.values()) > 0 else ""
    return (
        f"<h2>Stages</h2>{bar}"
        f'<div class="scroll"><table class="stages"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
        f'<p class="note">Wall clock: {duration(sum(seconds.values()))} for all stages, {duration(spent)} of them in '
        "this run; a stage that was kept was made by an earlier run with the same settings. Memory is the most that "
        "the process had at once.</p>"
        f'<dl class="says">{"".join(said)}</dl>'
    )


def _makers(content: Content) -> str:
    estimator, view_generator = str(content.summary["estimator"]), content.summary["view_generator"]
    licence = ""
    bound = next((terms for name, terms in _NON_COMMERCIAL.items() if name in estimator.lower()), None)
    if bound is not None:
        licence = (
            f'<div class="box warn"><p><b>Not for commercial use.</b> {bound}; what is made with them is bound to it '
            "as far as the licence reaches. Structure from motion (<code>--geometry colmap</code>) needs no weights."
            "</p></div>"
        )
    by = "nobody" if view_generator is None else f"<code>{escape(str(view_generator))}</code>"
    state = "" if view_generator is None or GENERATION in content.stages else " (not generated yet)"
    return (
        f"<h2>Who made it</h2>{licence}<p>Cameras and points: <code>{escape(estimator)}</code></p>"
        f"<p>Generated by: {by}{state}</p>"
    )


def _bytes(count: float) -> str:
    """Decimal units, as file managers have them."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"
