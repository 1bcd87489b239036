"""Formats plans as text."""

from collections.abc import Mapping, Sequence
from typing import Any

_GIB = 2.0**30
_MOST_PARTS = 10


def text(plan: Mapping[str, Any]) -> str:
    """Returns a plan as several lines of text.

    Args:
      plan: as `--json` prints it.
    """
    lines = [*_setting(plan), *_memory(plan)]
    if "flops" in plan:
        lines += _arithmetic(plan["flops"])
    lines += [
        f"{'collectives' if not k else '':<12}{c['kind']} along {c['axes']}"
        f"{' between slices' * c['crosses_slices']}: {c['count']:.0f}, "
        f"{c['wire_bytes'] / 1e6:,.1f} MB sent by a device, {c['seconds'] * 1e3:.2f} ms"
        for k, c in enumerate(plan.get("collectives", ()))
    ]
    moved = list(plan.get("traffic", {}).items())[:_MOST_PARTS]
    lines += [
        f"{'HBM' if not k else '':<12}{size / 1e9:6.2f} GB of each device: {part}"
        for k, (part, size) in enumerate(moved)
    ]
    if "roofline" in plan:
        lines += _estimate(plan["roofline"])
    lines += [f"{'to fit' if not k else '':<12}{advice}" for k, advice in enumerate(plan["advice"])]
    lines.append(f"compiled in {plan['compile_seconds']:.0f} s")
    return "\n".join(lines)


def _setting(plan: Mapping[str, Any]) -> list[str]:
    """Returns the lines on chips, model, batch and stand-ins."""
    model, mesh = plan["model"], plan["mesh"]
    slices = f" x {plan['slices']} slices" if plan["slices"] > 1 else ""
    parts = plan["gradient_accumulation"]
    return [
        f"{plan['topology']}{slices}: {plan['chips']} chips, mesh "
        f"{' x '.join(f'{name} {n}' for name, n in mesh.items())}",
        f"model       {model['parameters']:,} parameters, vocabulary {model['vocab_size']:,}, "
        f"{model['dtype']}, remat {model['remat']}, attention {model['attention_implementation']}",
        "batch       "
        + ", ".join(f"{name} {n}" for name, n in plan["batch"].items())
        + (f", in {parts} parts" if parts > 1 else ""),
        *(f"stand-in    {stand_in}" for stand_in in plan.get("stand_ins", ())),
    ]


def _memory(plan: Mapping[str, Any]) -> list[str]:
    """Returns the lines on memory, and on the compiler's refusal if there is one."""
    memory = plan["memory"]
    parts = (
        f"{name.replace('_', ' ')} {size / _GIB:.2f} GiB"
        for name, size in memory.items()
        if name not in ("peak", "capacity")
    )
    fits = "fits" if plan["fits"] else "DOES NOT FIT"
    peak = f"{memory['peak'] / _GIB:.2f}" if memory["peak"] else "?"
    lines = [
        f"memory      {', '.join(parts)}, each device",
        f"            peak {peak} of {memory['capacity'] / _GIB:.2f} GiB: {fits}",
    ]
    if "compiler" in plan:
        lines.append(f"            the compiler says: {plan['compiler']}")
    return lines


def _arithmetic(flops: Mapping[str, Any]) -> list[str]:
    """Returns the lines on arithmetic."""
    lines = [
        f"arithmetic  {flops['model'] / 1e12:.1f} TFLOP a step by the formula, "
        f"{flops['per_device'] / 1e12:.3f} on each device: {flops['ratio']:.3f} times the "
        "formula"
    ]
    if "uncounted" in flops:
        lines.append(f"            not counted: {', '.join(flops['uncounted'])}")
    return lines


def _estimate(roofline: Mapping[str, Any]) -> list[str]:
    """Returns the lines on the roofline."""
    parts = ("compute", "memory", "interconnect", "network")
    return [
        "estimate    "
        + ", ".join(f"{name} {roofline[name] * 1e3:.1f} ms" for name in parts)
        + f": {roofline['bottleneck']} is the bottleneck",
        f"            a step takes at least {roofline['step_seconds'] * 1e3:.1f} ms: at most "
        f"{roofline['examples_per_second']:,.0f} examples/s, MFU at most {roofline['mfu']:.1%}",
        "            (from published peak figures, everything overlapping: an estimate, not a "
        "measurement)",
    ]


def table(plans: Sequence[Mapping[str, Any]]) -> str:
    """Returns a table of the plans of `--sweep`, the best first."""
    header = (
        f"{'mesh':<34}{'batch':<24}{'parts':>5}  {'remat':<12}{'peak GiB':>9}{'ms':>9}"
        f"{'ex/s':>9}{'MFU':>7}  bottleneck"
    )
    lines = [header]
    for plan in sorted(plans, key=lambda p: -rank(p)):
        mesh = " x ".join(f"{name} {n}" for name, n in plan["mesh"].items())
        batch = " + ".join(map(str, plan["batch"].values()))
        peak = plan["memory"]["peak"]
        line = (
            f"{mesh:<34}{batch:<24}{plan['gradient_accumulation']:>5}  "
            f"{plan['model']['remat']:<12}{peak / _GIB if peak else float('nan'):>9.2f}"
        )
        if plan["fits"] and "roofline" in plan:
            roof = plan["roofline"]
            line += (
                f"{roof['step_seconds'] * 1e3:>9.1f}{roof['examples_per_second']:>9,.0f}"
                f"{roof['mfu']:>7.1%}  {roof['bottleneck']}"
            )
        else:
            line += "  does not fit"
        lines.append(line)
    return "\n".join(lines)


def rank(plan: Mapping[str, Any]) -> float:
    """Returns the bound on examples per second; 0 for a plan that does not fit."""
    return plan["roofline"]["examples_per_second"] if plan["fits"] else 0.0
