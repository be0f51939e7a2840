"""Claims about what the decoder shows: reconstruction over prefixes, and the round trip through another scene."""

from __future__ import annotations

import numpy as np
import torch

from lamina.evaluation.evaluate import prefixes_of
from lamina.evaluation.pictures import grid, most_changed
from lamina.evaluation.probes.reconstruction import psnr, reconstruct
from lamina.inference.subject import subject_of
from lamina.methods import lapo
from lamina.models.hub import LatentActionModel
from lamina.types import Clip
from lamina_research.claims.flexlam.study import FlexLAMStudy, flexlam_spec
from lamina_research.experiment import Experiment, Outcome
from lamina_research.figures import LinePlot
from lamina_research.seeds import interval, paired_difference
from lamina_research.study import ModelSpec
from lamina_research.text import listed, means


def vq32(seed: int) -> ModelSpec:
    """A villa-X style reference: one VQ token of 32 codes, FlexLAM's encoder and decoder."""
    return ModelSpec(lapo, seed, (("code_dim", 32), ("codebook_size", 32), ("encoder", "auto"), ("slots", 1)))


def spread_over_tasks(lab: FlexLAMStudy, clip: Clip, count: int) -> Clip:
    """``count`` transitions, as many from each task, evenly spread over its episodes."""
    tasks = lab.task_of(clip)
    names = list(dict.fromkeys(tasks))
    rows: list[int] = []
    for name in names:
        own = [i for i, task in enumerate(tasks) if task == name]
        places = torch.linspace(0, len(own) - 1, max(2, count // len(names))).round().long()
        rows += [own[i] for i in places.unique().tolist()]
    return clip[torch.tensor(rows)]


def reconstruction(experiment: Experiment) -> Outcome:
    """PSNR and SSIM over prefixes, against a LAM with one VQ token of 32 codes and the same encoder and decoder (Table 1)."""
    lab = FlexLAMStudy(experiment)
    slots = lab.setup.budgets[-1]
    budgets = (max(1, slots // 16), max(2, slots // 4), slots)  # the paper's 5, 20, 80 of 80
    names = [f"FlexLAM@{k}" for k in budgets]
    metrics: dict[str, dict[str, list[float]]] = {}
    curves: dict[int, list[float]] = {k: [] for k in prefixes_of(slots)}

    def add(name: str, psnrs: np.ndarray, ssims: np.ndarray) -> None:
        own = metrics.setdefault(name, {"psnr": [], "ssim": []})
        own["psnr"].append(float(np.mean(psnrs)))
        own["ssim"].append(float(np.mean(ssims)))

    for seed in experiment.seeds:
        model, rival = lab.load(flexlam_spec(seed)), lab.load(vq32(seed))
        test = spread_over_tasks(lab, lab.transitions(model, lab.setup.split), lab.setup.decoded)
        for score in reconstruct(subject_of(model), test, prefixes_of(slots)):
            add(f"FlexLAM@{score.k}" if score.role == "model" else score.name, score.psnr, score.ssim)
            if score.role == "model" and score.k is not None:
                curves[score.k].append(float(np.mean(score.psnr)))
        score = reconstruct(subject_of(rival), test, (1,))[0]
        add("VQ-32", score.psnr, score.ssim)

    def above(a: str, b: str) -> bool:
        gains = (paired_difference(metrics[a][m], metrics[b][m]) for m in ("psnr", "ssim"))
        return all(gain.low is not None and gain.low > 0 for gain in gains)

    grows = above(names[1], names[0]) and above(names[2], names[1])
    beaten = [name for name in names if above(name, "VQ-32")]
    shown = {name: metrics[name]["psnr"] for name in [*names, "VQ-32", "copy-frame"]}
    text = (
        f"PSNR in dB: {means(shown, 2)}. Above the VQ reference beyond doubt: {listed(beaten)}. "
        "LPIPS is not measured: its weights are not at hand."
    )
    return Outcome(
        metrics=metrics,
        holds=grows and names[-1] in beaten,
        explanation=text,
        plot=LinePlot(
            "Reconstruction over the retained prefix",
            "k, slots kept",
            "held-out PSNR (dB)",
            list(curves),
            {"FlexLAM": [interval(values) for values in curves.values()]},
            {"VQ-32": interval(metrics["VQ-32"]["psnr"]), "copy-frame": interval(metrics["copy-frame"]["psnr"])},
            log_x=True,
        ),
    )


def round_trip(experiment: Experiment) -> Outcome:
    """Out of one scene into another and back: Dec(o_src, Enc(o_tgt, Dec(o_tgt, z))) against o_{t+1} (§6.1, Fig. 6)."""
    lab = FlexLAMStudy(experiment)
    scores: dict[str, list[float]] = {
        "round trip": [],
        "round trip of another latent": [],
        "direct": [],
        "copy-frame": [],
    }
    picture = experiment.workdir / "round-trip.png"
    for seed in experiment.seeds:
        model = lab.load(flexlam_spec(seed))
        clip = spread_over_tasks(lab, lab.transitions(model, lab.setup.split), lab.setup.decoded)
        # The other scene: the frame at the same place in another task's (or, with one task, another episode's) transitions.
        target = clip.frames[:, 0].roll(len(clip) // 2, 0)
        src, dst = clip.frames[:, 0], clip.frames[:, 1]
        latent = model.encode(src, dst).post
        moved, back = trip(model, src, target, latent)
        _, blind = trip(model, src, target, latent.roll(len(clip) // 3 + 1, 0))
        direct = model.decode(src, latent)
        for name, predicted in zip(scores, (back, blind, direct, src), strict=True):
            scores[name].append(float(psnr(predicted, dst).mean()))
        if seed == experiment.seeds[0]:
            rows = most_changed(clip, 6)
            columns = ["source $o_t$", "source $o_{t+1}$", "other scene", "same latent", "and back"]
            grid(picture, columns, [x[rows] for x in (src, dst, target, moved, back)])
    better = [
        paired_difference(scores["round trip"], scores[name]) for name in ("copy-frame", "round trip of another latent")
    ]
    return Outcome(
        metrics={name: {"psnr": values} for name, values in scores.items()},
        holds=all(gain.low is not None and gain.low > 0 for gain in better),
        explanation=f"PSNR in dB against the true next frame: {means(scores, 2)}.",
        picture=picture,
    )


def trip(
    model: LatentActionModel, src: torch.Tensor, target: torch.Tensor, z: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The latent applied to ``target``, read off there again, and applied to ``src``: both predicted frames."""
    moved = model.decode(target, z)
    return moved, model.decode(src, model.encode(target, moved).post)
