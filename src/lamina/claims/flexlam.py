"""The claims of FlexLAM (arXiv 2606.19408): retained prefixes make one latent action work at every budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from lamina import align, pretrain
from lamina.claims.experiment import Claim, Experiment, Outcome
from lamina.claims.figures import LinePlot
from lamina.claims.intervals import interval, paired_difference
from lamina.data import collect, gather
from lamina.evaluate import prefixes_of
from lamina.lam import LatentActionModel
from lamina.methods import flexlam, lapo
from lamina.probes.reconstruction import reconstruct
from lamina.probes.translation import controls, score_translator
from lamina.train import TrainConfig

PAPER = "FlexLAM, arXiv 2606.19408"


@dataclass(frozen=True)
class Setup:
    """One scale's data, model and training. At cpu scale the decoder is a U-Net: a flow needs more steps than two cores give."""

    world: str
    frames: int
    labels: int
    tested: int
    heads: int  # steps of a translator
    options: dict[str, Any]
    train: TrainConfig


SETUPS = {
    "smoke": Setup(
        "grid", 400, 64, 64, 50, {"size": "debug", "image": (32, 32), "slots": 4, "decoder": "unet"},
        TrainConfig(steps=20, batch=16, lr=1e-3, device="cpu", checkpoint_every=20, validate_every=20),
    ),
    "cpu": Setup(
        "my_way_home", 12_000, 512, 1024, 600, {"size": "tiny", "image": (48, 48), "slots": 16, "decoder": "unet"},
        TrainConfig(steps=1500, batch=32, lr=2e-3, device="cpu", checkpoint_every=250, validate_every=250),
    ),
}  # fmt: skip


def dataset(experiment: Experiment) -> Path:
    """Scripted-expert episodes, collected once."""
    setup = SETUPS[experiment.scale]
    size = setup.options["image"]
    key = {"world": setup.world, "frames": setup.frames, "size": size, "seed": 0}

    def build(path: Path) -> None:
        collect.collect(setup.world, path / "data", frames=setup.frames, size=size, progress=False)

    return experiment.cached(key, (collect,), build) / "data"


def trained(experiment: Experiment, method: Any, options: dict[str, Any], seed: int) -> LatentActionModel:
    """A LAM of ``method`` trained on that data, once a seed however many claims ask."""
    setup = SETUPS[experiment.scale]
    data = dataset(experiment)
    config = method.Config(**{**setup.options, **options})
    plan = pretrain.recipe(method.__name__.rpartition(".")[2], method, config)
    training = replace(setup.train, seed=seed, resume=True)
    key = {
        "method": plan.method, "options": plan.options, "train": vars(setup.train), "seed": seed,
        "data": [setup.world, setup.frames],
    }  # fmt: skip

    def build(path: Path) -> None:
        source = pretrain.DataConfig((str(data),), config.image, config.frames)
        pretrain.pretrain(path, plan, source, training)

    experiment.progress(f"{plan.method}, seed {seed}")
    return LatentActionModel.from_pretrained(str(experiment.cached(key, (pretrain, method), build)))


def prefix_scaling(experiment: Experiment) -> Outcome:
    """Translator loss on held-out episodes over every k of one model (Fig. 7)."""
    setup = SETUPS[experiment.scale]
    ks = tuple(range(1, setup.options["slots"] + 1))
    losses: dict[int, list[float]] = {k: [] for k in ks}
    rivals: dict[str, list[float]] = {}
    correlation: list[float] = []
    for seed in experiment.seeds:
        model = trained(experiment, flexlam, {}, seed)
        data = align.probe_data(model, str(dataset(experiment)))
        spec = align.action_spec(data)
        labels = gather(data, "train", setup.labels, seed, require_action=True)
        test = gather(data, "test", setup.tested, require_action=True)
        parts = align.split_labels(align.labelled(model.lam, labels), seed)
        train, held = (replace(part, clip=None) for part in parts)
        config = align.TranslatorConfig()
        translator, _ = align.train_translator(model.lam, train, held, spec, config, align.quick(setup.heads, seed))
        scores = score_translator(translator, model.lam.prefix, align.labelled(model.lam, test), ks, "FlexLAM", "model")
        curve = [float(score.loss.mean()) for score in scores]
        for k, loss in zip(ks, curve, strict=True):
            losses[k].append(loss)
        correlation.append(float(spearmanr(ks, curve).statistic))
        for rival in controls(model.lam, labels, test, spec, config, seed, setup.heads):
            rivals.setdefault(rival.name, []).append(float(rival.loss.mean()))
    rho = interval(correlation)
    blind = rivals["shuffled latents"]
    usable = paired_difference(losses[1], blind)
    falls = rho.high is not None and rho.high < 0
    beats = usable.high is not None and usable.high < 0
    first, last = interval(losses[1]).mean, interval(losses[ks[-1]]).mean
    text = (
        f"Spearman correlation of loss with k: {rho.mean:.2f}. Loss {first:.3f} at k = 1 and {last:.3f} at k = {ks[-1]}; "
        f"without the latent {interval(blind).mean:.3f}. {setup.labels} labels, U-Net decoder."
    )
    return Outcome(
        metrics={
            **{f"FlexLAM@{k}": {"loss": values} for k, values in losses.items()},
            "FlexLAM": {"spearman": correlation},
            **{name: {"loss": values} for name, values in rivals.items()},
        },
        holds=falls and beats,
        explanation=text,
        plot=LinePlot(
            "Translator loss over the retained prefix",
            "k, slots kept",
            "held-out loss (nats)",
            ks,
            {"FlexLAM": [interval(losses[k]) for k in ks]},
            {name: interval(values) for name, values in rivals.items()},
        ),
    )


def reconstruction(experiment: Experiment) -> Outcome:
    """PSNR and SSIM over prefixes, against a LAM with one VQ token of 32 codes and the same encoder and decoder (Table 1)."""
    setup = SETUPS[experiment.scale]
    slots = setup.options["slots"]
    budgets = (max(1, slots // 16), max(2, slots // 4), slots)  # the paper's 5, 20, 80 of 80
    rival_options = {"encoder": "auto", "slots": 1, "codebook_size": 32, "code_dim": 32}
    names = [f"FlexLAM@{k}" for k in budgets]
    metrics: dict[str, dict[str, list[float]]] = {}
    curves: dict[int, list[float]] = {k: [] for k in prefixes_of(slots)}
    for seed in experiment.seeds:
        rival = trained(experiment, lapo, rival_options, seed)
        model = trained(experiment, flexlam, {}, seed)
        data = align.probe_data(model, str(dataset(experiment)))
        test = gather(data, "test", setup.tested // 2)
        for score in reconstruct(model, test, prefixes_of(slots)):
            name = f"FlexLAM@{score.k}" if score.role == "model" else score.name
            metrics.setdefault(name, {"psnr": [], "ssim": []})
            metrics[name]["psnr"].append(float(np.mean(score.psnr)))
            metrics[name]["ssim"].append(float(np.mean(score.ssim)))
            if score.role == "model" and score.k is not None:
                curves[score.k].append(float(np.mean(score.psnr)))
        score = reconstruct(rival, test, (1,))[0]
        metrics.setdefault("VQ-32", {"psnr": [], "ssim": []})
        metrics["VQ-32"]["psnr"].append(float(np.mean(score.psnr)))
        metrics["VQ-32"]["ssim"].append(float(np.mean(score.ssim)))

    def above(a: str, b: str) -> bool:
        gains = (paired_difference(metrics[a][m], metrics[b][m]) for m in ("psnr", "ssim"))
        return all(gain.low is not None and gain.low > 0 for gain in gains)

    grows = above(names[1], names[0]) and above(names[2], names[1])
    beaten = [name for name in names if above(name, "VQ-32")]
    means = {name: interval(values["psnr"]).mean for name, values in metrics.items()}
    told = ", ".join(f"{name} {means[name]:.2f}" for name in [*names, "VQ-32", "copy-frame"])
    text = (
        f"PSNR in dB: {told}. Above the VQ reference beyond doubt: {', '.join(beaten) or 'none'}. "
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


CLAIMS = (
    Claim(
        id="flexlam/matched-budget",
        statement="With scarce labels, one FlexLAM beats a separately trained Fixed-K at every budget k.",
        paper="Section 5.2, Fig. 3: FlexLAM wins at k = 4, 16 and 64 with 0.025% of the labels.",
        decides="Held-out translator loss of FlexLAM@k is below that of Fixed-Kk at every k, paired over seeds; "
        "the same for normalized return in closed loop.",
    ),
    Claim(
        id="flexlam/label-scaling",
        statement="FlexLAM's gap over Fixed-K depends on the number of labels, and is there where labels are scarce.",
        paper="Fig. 3, left: a curve.",
        decides="Held-out translator loss against the number of labels, for Fixed-K and FlexLAM.",
    ),
    Claim(
        id="flexlam/narrow-source",
        statement="With labels from a single low-return task FlexLAM stays stable where a loose Fixed-K is fragile.",
        paper="Section 5.3, Fig. 4: Fixed-K64 falls below the random policy on one task.",
        decides="Loss and return on the other tasks, against the same number of labels drawn from all tasks.",
    ),
    Claim(
        id="flexlam/prefix-scaling",
        statement="Inside one model alignment improves with the prefix length k, and short prefixes stay usable.",
        paper="Section 6.2, Fig. 7: the loss falls with k.",
        decides="Held-out translator loss over all k: its Spearman correlation with k is below 0 beyond its interval, and "
        "the loss at k = 1 is below that of shuffled latents, paired over seeds.",
        run=prefix_scaling,
        scales=("smoke", "cpu"),
    ),
    Claim(
        id="flexlam/token-budget",
        statement="16 of 64 tokens keep most of the return at a fraction of the latency.",
        paper="Section 6.2, Table 2: 95% of the return at 3.6 times lower latency.",
        decides="Ratio of returns and ratio of decision-step latencies, by the protocol of Appendix B.6.",
    ),
    Claim(
        id="flexlam/joint-alignment",
        statement="Inverse dynamics can beat a frozen LAM; tuned jointly the order reverses, and FlexLAM gains most.",
        paper="Section 6.3: the order of the methods.",
        decides="Validation loss of inverse dynamics, Fixed-K and FlexLAM, frozen and joint, with 0.5% of the labels.",
    ),
    Claim(
        id="flexlam/reconstruction",
        statement="Reconstruction improves with the prefix length, and beats a fixed VQ code.",
        paper="Section 5.4, Table 1: PSNR, SSIM and LPIPS improve from k = 5 to 20 to 80, and beat villa-X's LAM.",
        decides="Per-frame PSNR and SSIM rise at each of three budgets, and at the largest they are above those of a "
        "villa-X style LAM (one VQ token of 32 codes) of equal encoder and decoder, paired over seeds.",
        run=reconstruction,
        scales=("smoke", "cpu"),
    ),
    Claim(
        id="flexlam/round-trip",
        statement="A latent action moves to another embodiment or scene, and back.",
        paper="Section 6.1, Fig. 6: pictures.",
        decides="PSNR of the round trip against copy-frame and against a shuffled latent, and the picture.",
    ),
    Claim(
        id="flexlam/translator-conditioning",
        statement="The latent with the previous action beats the latent alone; adding the frame overfits few labels.",
        paper="Appendix D.1: the order of the translators.",
        decides="Held-out loss of three translators on the same labels.",
    ),
    Claim(
        id="flexlam/prefix-distribution",
        statement="Drawing short or long prefixes more often trades compression against detail.",
        paper="Appendix A.7: no figure.",
        decides="Loss over k for three distributions p(k).",
    ),
)
