"""The model card that lies beside converted weights."""

from __future__ import annotations

from reconx_pl.diffusion.weights.releases import Release

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
the autoencoder and of the two CLIP towers.

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
        head = _HEAD.format(licence="license: other\nlicense_name: see-below", base="", title="ReconX network")
        text = (
            "Weights of a `ReconXDiffusion` of reconx_pl, an open implementation of ReconX, with the frozen towers.\n\n"
            "## Licence\n\nThat of the base model and of the data that the network was trained on; state it here "
            "before you publish this folder.\n"
        )
        return head + text + _LOAD
    page = f"https://huggingface.co/{release.repository}"
    licence = (
        f"license: {release.licence}"
        if release.licence
        else f"license: other\nlicense_name: that-of-the-base-model\nlicense_link: {page}/blob/main/LICENSE"
    )
    known = (
        f"Its page on the hub carries the tag `{release.licence}`."
        if release.licence
        else f"Its repository on the hub has a [LICENSE]({page}/blob/main/LICENSE) file, which governs these weights; "
        "it was not read when this card was made. The code of DynamiCrafter is released under Apache-2.0."
    )
    text = f"""The released weights of {release.title} ([{release.repository}]({page})) in the form of reconx_pl, an \
open implementation of ReconX: U-Net, autoencoder, resampler and both CLIP towers, in {_DTYPES[dtype]}. \
Nothing was trained: the structure branch of ReconX is not among them and is born, closed, when the model is loaded.

Trained by its authors at {release.height} x {release.width} pixels; the noise schedule in `config.json` (zero \
terminal SNR, dynamic rescale to {release.rescale_end}) is the release's. The image projector has queries for {frames} \
frames; the release has 16{"" if frames == 16 else ", which were adapted"}.

## Licence

The licence of the base model's weights holds for this folder. {known} The CLIP towers and the autoencoder inside come \
from OpenCLIP and Stable Diffusion, with licences of their own.
"""
    base = f"base_model: {release.repository}\n"
    return _HEAD.format(licence=licence, base=base, title=f"{release.title}, for reconx_pl") + text + _LOAD
