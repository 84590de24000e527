"""What a reader of the report must know beside the scores: what was done, what failed, what is not to be trusted."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from reconx_pl.evaluation.baselines import METHODS
from reconx_pl.evaluation.records import Record
from reconx_pl.types import AlignmentQuality
from reconx_pl.visualization.html import plural

_RENDERED = "The splats are rendered at the cameras of the true frames between"
_UNSEEN = f"{_RENDERED}, which neither the model nor the fit has seen, and compared with them."
SEES_TRUTH = {"ceiling", "reconx_refined"}  # never the best of a table
SEEN = {  # by pose policy
    "dataset": f"{_RENDERED} and compared with them: the true frames were seen by neither the model nor the fit; "
    "their poses were given to the fit.",
    "interpolated": _UNSEEN,
    "aligned": _UNSEEN,
}
POSES = {  # of generated frames
    "dataset": "Generated frames carry the poses of the data set.",
    "interpolated": "Generated frames carry poses interpolated between the input cameras.",
    "aligned": "Generated frames carry poses of a global alignment that holds the input cameras.",
}
TRUST = {  # by the setting of confidence
    "reprojection": "Generated frames are weighed by their agreement with the cloud.",
    "render": "Generated frames are weighed by their agreement with the surfaces that the input views saw.",
    "alignment": "Generated frames are weighed by the confidence of their alignment.",
    "uniform": "Every pixel of the generated frames is trusted alike.",
}
MASKED = {
    "targets": "Targets with a mask are scored within it alone.",
    "white": "Targets with a mask are white outside of it, as RegNeRF scores them.",
}


def introduction(results: Record) -> str:
    """What the evaluation is, and how its table is read."""
    what = (
        "Each scene is a clip of which only the first and the last frame are given. A video diffusion model generates "
        "the frames between them, guided by their geometry; 3D Gaussians (splats) are then fitted to all frames. "
        f"{SEEN[results['pose_policy']]}"
    )
    if results.get("protocol"):
        what = (
            f"Each scene is an entry of the protocol <code>{escape(_protocol(results))}</code>: a few context views "
            "are given. A video diffusion model generates a clip from each context view to the next, guided by their "
            "geometry; 3D Gaussians (splats) are then fitted to all that it generated. The splats are rendered at the "
            "cameras of the targets, which neither the model nor the fit has seen, and compared with them."
        )
    if not results["config"]["diffusion"]:
        what = (
            "3D Gaussians (splats) are fitted to the photographs alone; nothing is generated. They are rendered at the "
            "cameras of photographs that the fit has not seen, and compared with them."
        )
    return (
        f'<div class="box"><p><b>What this is.</b> {what}</p>'
        "<p><b>How to read it.</b> The first row of the table is the method; the rows below say what simpler means "
        "reach on the same targets. PSNR and SSIM: higher is better; LPIPS: lower is better. Scores are means over the "
        "targets of a scene, then over scenes. On the contact sheets time runs to the right.</p></div>"
    )


def verdict(results: Record) -> str:
    """One line: which method has the best PSNR, by how much, and how the method stands to the input views alone."""
    scores = {method: values["psnr"] for method, values in results["mean"].items() if "psnr" in values}
    ranked = sorted((method for method in scores if method not in SEES_TRUTH), key=lambda method: -scores[method])
    if len(ranked) < 2:
        return ""
    first, second = ranked[:2]
    line = (
        f"<b>{escape(METHODS[first])}</b> wins by {scores[first] - scores[second]:.2f} dB PSNR: {scores[first]:.2f} "
        f"against {scores[second]:.2f}, {escape(METHODS[second])}."
    )
    if {"reconx", "two_views"} <= scores.keys() and {first, second} != {"reconx", "two_views"}:
        gain = scores["reconx"] - scores["two_views"]
        line += f" {escape(METHODS['reconx'])}: {gain:+.2f} dB over {escape(METHODS['two_views'])}."
    return f'<p class="verdict">{line}</p>'


def scoring_note(results: Record, geometry: str) -> str:
    """How the scores came about: targets, poses, points, weights, masks.

    Args:
        results: of the evaluation, with a scene at least.
        geometry: where the clouds come from.
    """
    config = results["config"]
    targets = sorted({len(record["targets"]) for record in results["scenes"]})
    counted = f"{targets[0]}" if len(targets) == 1 else f"{targets[0]} to {targets[-1]}"
    count = len(results["scenes"])
    parts = [f"{count} scene{'s' * (count != 1)}, {counted} targets each."]
    if config["diffusion"]:
        parts.append(POSES[results["pose_policy"]])
    if config["diffusion"] and config["fit"].get("poses"):
        parts.append("The fit refined these poses.")
    parts.append(f"Point clouds: {escape(geometry)}.")
    if config["diffusion"]:
        best = "alignment" if results["pose_policy"] == "aligned" else "reprojection"
        parts.append(TRUST[best if config["confidence"] == "auto" else config["confidence"]])
    if config["fit"].get("robust_weights"):
        parts.append("Where they disagree with the scene that all frames make together they count less.")
    if any(record.get("masked") for record in results["scenes"]):
        parts.append(MASKED[config["masks"]])
    parts.append("SSIM is scikit-image's with an 11 × 11 Gaussian window, LPIPS is VGG.")
    if not results.get("protocol"):
        parts.append("Published numbers are of other scenes and sizes and stand elsewhere.")
    parts += [escape(coverage_note(results)), escape(left_out_note(results))]
    if "reconx_refined" in results["mean"]:
        parts.append("With test poses refined, each target's camera was moved to fit the target: not a score to quote.")
    return " ".join(part for part in parts if part)


def coverage_note(results: Record) -> str:
    """What covered and uncovered pixels are, and of how many scenes their means; empty without a split."""
    found = results.get("coverage")
    if not found:
        return ""
    ways = list(found["by"].items())
    by = ways[0][0] if len(ways) == 1 else "; ".join(f"{way} ({plural(count, 'scene')})" for way, count in ways)
    total = sum(found["by"].values())
    means = " and ".join(
        f"of {name} pixels over {_range(scenes.values()) if scenes else '0'} of {plural(total, 'scene')}"
        for name, scenes in found["scenes"].items()
    )
    return (
        f"Covered pixels, {100 * found['share']:.1f} % of the targets', are those that the input views have seen, by "
        f"{by}. Means are {means}: those with at least {100 * found['least']:g} % of such pixels."
    )


def left_out_note(results: Record) -> str:
    """Which rows are of fewer scenes than the others, and why."""
    return " ".join(
        f"{METHODS[method]}: not of {plural(count, 'scene')}, {why}."
        for method, reasons in results.get("left_out", {}).items()
        for why, count in reasons.items()
    )


def _range(counts: Iterable[int]) -> str:
    ordered = sorted(set(counts))
    return f"{ordered[0]}" if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"


def _protocol(results: Record) -> str:
    protocol = results["protocol"]
    return protocol if isinstance(protocol, str) else str(protocol.get("name", protocol))


def problems(results: Record) -> str:
    """The boxes above the scores."""
    parts = []
    if results["failed"]:
        items = "".join(
            f"<li><b>{escape(key)}</b>: {escape(error)}</li>" for key, error in sorted(results["failed"].items())
        )
        parts.append(f'<div class="box warn"><p><b>Failed, and not in the scores:</b></p><ul>{items}</ul></div>')
    if results["missing"]:
        names = ", ".join(escape(key) for key in results["missing"])
        parts.append(f'<div class="box warn"><p><b>Not evaluated yet:</b> {names}</p></div>')
    for name, reason in results["absent"].items():
        parts.append(
            f'<div class="box warn"><p><b>{escape(name.upper())} is not reported.</b> {_prose(reason)}</p></div>'
        )
    parts.append(_misaligned(results))
    return "".join(parts)


def alignment_note(record: Record) -> str:
    """The residual between found poses and those of the data set; empty for a scene without found poses."""
    found = record.get("alignment")
    if not found:
        return ""
    mark = '<b class="bad">bad alignment</b>' if found["suspicious"] else "alignment"
    return f'<p class="note">{mark} of found poses with the data set\'s: {escape(found["text"])}</p>'


def _misaligned(results: Record) -> str:
    """A warning that names the scenes whose found poses contradict the data set's."""
    bad = [record for record in results["scenes"] if (record.get("alignment") or {}).get("suspicious")]
    if not bad:
        return ""
    items = "".join(f"<li><b>{escape(record['key'])}</b>: {escape(record['alignment']['text'])}</li>" for record in bad)
    return (
        '<div class="box warn"><p><b>Found poses do not agree with those of the data set:</b> more than '
        f"{AlignmentQuality.MAX_DEGREES:g}° or {AlignmentQuality.MAX_PERCENT:g} % of the extent off in a view. The "
        "clouds of these scenes are not where the cameras look, and their scores mean little.</p>"
        f"<ul>{items}</ul></div>"
    )


def _prose(text: str) -> str:
    """Escaped text, with `commands` set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
