"""The model cards that lie beside weights."""

from __future__ import annotations

import re
from collections.abc import Mapping

import yaml

from reconx_pl.diffusion.weights.releases import RELEASED_QUERIES, Release
from reconx_pl.errors import ConfigurationError

_UNSTATED = "see-below"  # name of the licence in a card in which somebody has yet to state one
_TO_STATE = "; state it here before you publish this folder"
_FRONT = re.compile(r"\A---\n(.*?)^---\n", re.DOTALL | re.MULTILINE)  # the YAML at the top of a card
_HEAD = """---
{licence}
library_name: reconx_pl
pipeline_tag: image-to-video
{base}tags:
- video-diffusion
- novel-view-synthesis
- 3d-reconstruction
---

# {title}

"""

_DTYPES = {"32": "float32", "bf16": "bfloat16", "16": "float16"}
_LOAD = """
## Loading

```python
from reconx_pl.diffusion.model import ReconXDiffusion

network = ReconXDiffusion.from_pretrained("<this folder>")
```

In a configuration of `train.py` the folder can stand wherever a weights file can: `model.init_from`, and `weights` of
the autoencoder and of the two frozen CLIP encoders.

## Quality

Not measured here.
"""


def model_card(release: Release | None, frames: int, dtype: str) -> str:
    """A card in the form of the Hugging Face hub.

    Args:
        release: the base model that was converted; None for a network of ours.
        frames: with queries of their own in the resampler.
        dtype: of the weights.
    """
    if release is None:
        head = _HEAD.format(licence=f"license: other\nlicense_name: {_UNSTATED}", base="", title="ReconX network")
        text = (
            "Weights of a `ReconXDiffusion` of reconx_pl, an open implementation of ReconX, with the frozen "
            "encoders.\n\n"
            f"## Licence\n\nThat of the base model and of the data that the network was trained on{_TO_STATE}.\n"
        )
        return head + text + _LOAD
    page = f"https://huggingface.co/{release.repository}"
    if release.licence:
        licence, known = f"license: {release.licence}", f"Its page on the hub carries the tag `{release.licence}`."
    else:
        link = page if release.notice else f"{page}/blob/main/LICENSE"
        licence = f"license: other\nlicense_name: that-of-the-base-model\nlicense_link: {link}"
        known = (
            f"Its repository on the hub has a [LICENSE]({link}) file, which governs these weights; it was not read "
            "when this card was made. The code of DynamiCrafter is released under Apache-2.0."
        )
        if release.notice:
            known = f"{release.notice[0].upper()}{release.notice[1:]}."
    text = f"""The released weights of {release.title} ([{release.repository}]({page})) in the form of reconx_pl, an \
open implementation of ReconX: U-Net, autoencoder, resampler and both frozen CLIP encoders, in {_DTYPES[dtype]}. \
{_guidance(release)}

Trained by its authors at {release.height} x {release.width} pixels; the noise schedule in `config.json` (zero \
terminal SNR, dynamic rescale to {release.rescale_end}) is the release's. {_queries(release, frames)}

## Licence

The licence of the base model's weights holds for this folder. {known} The frozen CLIP encoders and the \
autoencoder inside come from OpenCLIP and Stable Diffusion, with licences of their own.
"""
    base = f"base_model: {release.repository}\n"
    return _HEAD.format(licence=licence, base=base, title=f"{release.title}, for reconx_pl") + text + _LOAD


def _guidance(release: Release) -> str:
    if release.render is None:
        return (
            "Nothing was trained: the structure branch of ReconX is not among them and is born, closed, when the model "
            "is loaded."
        )
    return (
        "Nothing was trained. It is guided by renders of the points of the input views, and nothing was added to it; "
        "`generation.json` says how its authors sample it."
    )


def _queries(release: Release, frames: int) -> str:
    if release.shared_tokens:
        return (
            f"The image projector has the release's queries for {frames} frames; every frame of a clip of "
            f"{release.frames} sees the tokens of all."
        )
    adapted = "" if frames == RELEASED_QUERIES else ", which were adapted"
    return f"The image projector has queries for {frames} frames; the release has {RELEASED_QUERIES}{adapted}."


def run_card(facts: Mapping[str, str], init_from: str | None) -> str:
    """A card for what a training run exported; the licence is left open, see ``with_licence``.

    Args:
        facts: of the file: ``stage``, ``step``, ``average``.
        init_from: weights that the run started from.
    """
    trained = [f"stage `{facts['stage']}`"] if "stage" in facts else []
    trained += [f"step {facts['step']}"] if "step" in facts else []
    trained += ["moving average of the weights"] if facts.get("average") == "True" else []
    started = f" The run started from `{init_from}`." if init_from else ""
    head = _HEAD.format(licence=f"license: other\nlicense_name: {_UNSTATED}", base="", title="ReconX, a training run")
    what = ", ".join(["Weights of a training run of reconx_pl, an open implementation of ReconX", *trained])
    text = f"""{what}.{started}
`weights.safetensors` is the network without the frozen encoders, which keep files of their own; `config.yaml` says
which network it is and where those files were: adapt these paths.

## Licence

The licences of the base model, of the frozen encoders and of the data that the network was trained on hold{_TO_STATE}.

## Loading

```
python evaluate.py --model <this folder> --out report --shards <shards>
```

In a configuration of `train.py` the file can stand in `model.init_from`.

## Quality

Not measured here.
"""
    return head + text


def with_licence(card: str, licence: str | None, where: str) -> tuple[str, str]:
    """A card that states a licence, and which.

    Args:
        card: as it is.
        licence: tag of the hub, for a card that states none yet; None takes what the card states.
        where: the card, in errors.

    Raises:
        ConfigurationError: neither states one, or they differ.
    """
    front = _FRONT.match(card)
    try:
        stated = yaml.safe_load(front[1]) if front else None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{where}: what stands between the lines --- is no YAML ({error})") from error
    stated = stated if isinstance(stated, dict) else {}
    known = stated.get("license")
    if known is not None and stated.get("license_name") != _UNSTATED:
        if licence not in (None, known):
            raise ConfigurationError(f"{where}: the card states the licence {known}, not {licence}; edit the card")
        return card, str(stated.get("license_name", known))
    if licence is None:
        raise ConfigurationError(
            f"{where}: no licence is stated, and weights without one are of no use to anybody. Give --licence: it has "
            "to agree with those of the base model and of the data"
        )
    if not re.fullmatch(r"[\w.+-]+", licence):
        raise ConfigurationError(f"a licence is a tag of the hub, such as apache-2.0 or cc-by-nc-4.0, got {licence!r}")
    stated = {"license": licence} | {name: value for name, value in stated.items() if not name.startswith("license")}
    body = card[front.end() :] if front else card
    body = body.replace(_TO_STATE, f"; whoever publishes them states `{licence}`")
    return f"---\n{yaml.safe_dump(stated, sort_keys=False)}---\n{body}", licence
