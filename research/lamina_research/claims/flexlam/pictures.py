"""Claims about predicted frames: reconstruction over prefixes, and the round trip through another scene."""

from __future__ import annotations

import torch

from lamina.evaluation.pictures import grid, most_changed
from lamina.evaluation.probes import reconstruction as reconstruction_probe
from lamina.evaluation.probes.reconstruction import psnr, reconstruct
from lamina.evaluation.probes.translation import prefixes_of
from lamina.inference.subject import subject_of
from lamina.methods import flexlam, lapo
from lamina.models.hub import LatentActionModel
from lamina.types import Clip
from lamina_research.claims.flexlam.study import FlexLAMStudy, flexlam_spec
from lamina_research.experiment import Experiment, Outcome
from lamina_research.figures import LinePlot
from lamina_research.seeds import below, column, over_seeds
from lamina_research.study import ModelSpec
from lamina_research.text import listed, means


def vq32(seed: int) -> ModelSpec:
    """A villa-X style reference: one VQ token of 32 codes, with FlexLAM's encoder and decoder."""
    return ModelSpec(lapo, seed, {"code_dim": 32, "codebook_size": 32, "encoder": "auto", "slots": 1})


def test_clip(study: FlexLAMStudy, model: LatentActionModel) -> Clip:
    """The held-out transitions that are decoded: as many from each task, evenly spread over its episodes."""
    clip = study.transitions(model, study.setup.split)
    tasks = study.task_of(clip)
    names = list(dict.fromkeys(tasks))
    rows: list[int] = []
    for name in names:
        own = [i for i, task in enumerate(tasks) if task == name]
        chosen = torch.linspace(0, len(own) - 1, max(2, study.setup.decoded // len(names))).round().long()
        rows += [own[i] for i in chosen.unique().tolist()]
    return clip[torch.tensor(rows)]


def reconstruction(experiment: Experiment) -> Outcome:
    """PSNR and SSIM over prefixes, against a LAM with one VQ token of 32 codes and the same encoder and decoder (Table 1)."""
    study = FlexLAMStudy(experiment)
    slots = study.setup.budgets[-1]
    prefixes = prefixes_of(slots)
    names = [f"FlexLAM@{k}" for k in (max(1, slots // 16), max(2, slots // 4), slots)]  # the paper's 5, 20, 80 of 80

    def measured(ours: ModelSpec, theirs: ModelSpec) -> dict[str, dict[str, float]]:
        model, reference = study.load(ours), study.load(theirs)
        clip = test_clip(study, model)
        found = {
            f"FlexLAM@{score.k}" if score.role == "model" else score.name: score
            for score in reconstruct(subject_of(model), clip, prefixes)
        }
        found["VQ-32"] = reconstruct(subject_of(reference), clip, (1,))[0]
        return {n: {"psnr": float(score.psnr.mean()), "ssim": float(score.ssim.mean())} for n, score in found.items()}

    def scores(seed: int) -> dict[str, dict[str, float]]:
        ours, theirs = flexlam_spec(seed), vq32(seed)
        key = {"reconstruction of": [study.key(ours), study.key(theirs)], "decoded": study.setup.decoded}
        key |= {"split": study.setup.split, "prefixes": prefixes}
        return experiment.cached_value(
            key, (__name__, reconstruction_probe, *study.model_code(flexlam, lapo)), lambda: measured(ours, theirs),
            needs=lambda: (study.run(ours), study.run(theirs)),
        )  # fmt: skip

    metrics = over_seeds(map(scores, experiment.seeds))

    def above(a: str, b: str) -> bool:
        return all(below(metrics[b][metric], metrics[a][metric]) for metric in ("psnr", "ssim"))

    grows = above(names[1], names[0]) and above(names[2], names[1])
    beaten = [name for name in names if above(name, "VQ-32")]
    psnrs = column(metrics, "psnr")
    references = {name: psnrs[name] for name in ("VQ-32", "copy-frame")}
    text = (
        f"PSNR in dB: {means({name: psnrs[name] for name in names} | references, 2)}. "
        f"Significantly above the VQ reference: {listed(beaten)}. LPIPS is not measured: its weights are not available."
    )
    title, series = "Reconstruction over the retained prefix", {"FlexLAM": [psnrs[f"FlexLAM@{k}"] for k in prefixes]}
    plot = LinePlot(title, "held-out PSNR (dB)", prefixes, series, references, xlabel="k, slots kept", log_x=True)
    return Outcome(metrics, grows and names[-1] in beaten, text, (plot,))


def round_trip(experiment: Experiment) -> Outcome:
    """Out of one scene into another and back: Dec(o_src, Enc(o_tgt, Dec(o_tgt, z))) against o_{t+1} (§6.1, Fig. 6)."""
    study = FlexLAMStudy(experiment)
    picture = experiment.workdir / "round-trip.png"

    def scores(seed: int) -> dict[str, dict[str, float]]:
        model = study.load(flexlam_spec(seed))
        clip = test_clip(study, model)
        src, dst = clip.frames.unbind(1)
        # The other scene: the first frame of a transition of another task (or, with one task, of another episode).
        target = src.roll(len(clip) // 2, 0)
        z = model.encode(src, dst).post
        moved, back = trip(model, src, target, z)
        _, other = trip(model, src, target, z.roll(len(clip) // 3 + 1, 0))
        if seed == experiment.seeds[0]:
            rows = most_changed(clip, 6)
            columns = ["source $o_t$", "source $o_{t+1}$", "other scene", "same latent", "and back"]
            grid(picture, columns, [x[rows] for x in (src, dst, target, moved, back)])
        predicted = {
            "round trip": back,
            "round trip of another latent": other,
            "direct": model.decode(src, z),
            "copy-frame": src,
        }
        return {name: {"psnr": float(psnr(frames, dst).mean())} for name, frames in predicted.items()}

    metrics = over_seeds(map(scores, experiment.seeds))
    psnrs = column(metrics, "psnr")
    better = [below(psnrs[name], psnrs["round trip"]) for name in ("copy-frame", "round trip of another latent")]
    return Outcome(metrics, all(better), f"PSNR in dB against the true next frame: {means(psnrs, 2)}.", picture=picture)


def trip(
    model: LatentActionModel, src: torch.Tensor, target: torch.Tensor, z: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two predictions: z applied to ``target``; and the latent of that transition applied to ``src``."""
    moved = model.decode(target, z)
    return moved, model.decode(src, model.encode(target, moved).post)
