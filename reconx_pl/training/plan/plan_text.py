"""A plan in words."""

from __future__ import annotations

from reconx_pl.training.plan.plan import Plan

GIB = 2**30


def plan_text(plan: Plan) -> str:
    """Several lines; what is assumed is called an assumption."""
    shape, flops, rate = plan.shape, plan.flops, plan.rate
    lines = [
        f"stage                   {plan.stage.value}",
        f"effective batch         {plan.effective_batch} clips = {shape.clips} a batch x {plan.accumulate} accumulated "
        f"x {plan.ranks} ranks",
        f"clip                    {shape.frames} frames of {shape.height} x {shape.width}, {shape.points:,} points"
        + (", from caches" if shape.cached else ""),
        "",
        f"trained parameters      {sum(plan.trained.values()):>15,}",
        *(
            f"  {group:<21} {count:>15,}   learning rate {plan.rates[group]:g}"
            for group, count in sorted(plan.trained.items())
        ),
        f"frozen parameters       {sum(plan.frozen.values()):>15,}",
        *(f"  {group:<21} {count:>15,}" for group, count in sorted(plan.frozen.items())),
        "",
        *_memory(plan),
        "",
        "computation of a batch on one device (2 FLOPs for a multiply-add)",
        f"  forward               {_tera(flops.forward)}",
        f"  forward and backward  {_tera(flops.total)}   of it the U-Net {flops.unet / 1e12:.4g}",
        *([f"  recomputed            {_tera(flops.recomputed)}"] if plan.recomputes else []),
        f"an optimizer step       {_tera(plan.step_flops)} on each of {plan.ranks}",
        "  time                  unknown: give flops_per_second for this device"
        if rate is None
        else f"  at {rate.flops / 1e12:.4g} TFLOP/s       {plan.step_seconds:>10.4g} s   "
        f"ASSUMPTION, not a measurement: {rate.origin}",
        "",
        *_length(plan),
    ]
    lines += [f"ASSUMPTION: {words}" for words in plan.assumptions]
    return "\n".join(lines)


def _memory(plan: Plan) -> list[str]:
    held, parts = plan.held, f", divided among {plan.ranks} ranks" if plan.sharded else ""
    rows = [
        (f"weights, without frozen encoders{parts}", held.weights),
        (f"gradients{parts}", held.gradients),
        (f"AdamW's moments{parts}", held.moments),
        (f"average of the weights{parts}", held.average),
        ("frozen encoders, whole", held.frozen_encoders),
        ("two sharded units, gathered" if plan.sharded else "gradients in DDP's buckets", held.exchange),
        ("saved activations", plan.kept.activations),
        ("the largest recomputed block", plan.kept.block),
        (f"copies of weights ({plan.precision})", 0 if plan.sharded else plan.kept.copies),
    ]
    other, what = (plan.stored, "without") if plan.recomputes else (plan.recomputing, "with")
    return [
        f"memory of a device      {plan.bytes / GIB:>10.2f} GiB, an estimate: without workspaces and fragmentation",
        *(f"  {size / GIB:>10.2f} GiB  {name}" for name, size in rows if size),
        f"  {plan.kept_bytes(other) / GIB:>10.2f} GiB  {what} recomputation of blocks, instead of "
        f"{plan.kept_bytes(plan.kept) / GIB:.2f} for the last lines (activations, blocks, copies)",
    ]


def _length(plan: Plan) -> list[str]:
    lines = []
    if plan.clips is not None:
        lines.append(f"training data           {plan.clips:,} clips in {plan.shards:,} shards")
    if plan.steps is None:
        return [*lines, "steps                   no end (trainer.max_steps is -1)"]
    seen = plan.steps * plan.effective_batch
    epochs = "" if plan.clips is None else f" = {seen / plan.clips:.4g} epochs"
    lines.append(f"steps                   {plan.steps:,}: {seen:,} clips{epochs}")
    if plan.step_seconds is not None:
        hours = plan.steps * plan.step_seconds / 3600
        lines.append(
            f"time                    {hours:.4g} h, {hours * plan.ranks:.4g} device hours at the assumed rate, "
            "without validation and waiting for data"
        )
    return lines


def _tera(flops: float) -> str:
    return f"{flops / 1e12:>10.4g} TFLOP"
