"""The claims of AC-LAM: latents that compose after the quantiser, through the decoder."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lamina.data.sampling import DataConfig, open_source
from lamina.data.stream import sample_split
from lamina.errors import LaminaError
from lamina.evaluation.pictures import composed_picture
from lamina.evaluation.probes.leakage import leakages
from lamina.evaluation.probes.structure import STATE
from lamina.evaluation.probes.trajectory import Trajectory, trajectories
from lamina.evaluation.probes.usage import LatentUse, latent_use
from lamina.inference.subject import pixel_change, random_weights_subject
from lamina_research.claims.structure_study import (
    PIXELS,
    RANDOM,
    ModelEntry,
    StructureStudy,
    ac_lam_model,
    gains,
    invalid_entries,
    other_methods,
    rivals,
    void_text,
)
from lamina_research.experiment import Claim, Experiment, Outcome
from lamina_research.figures import BarPlot, LinePlot
from lamina_research.seeds import Interval, below, interval
from lamina_research.text import means_of

PAPER = "AC-LAM"
SCALES = ("smoke", "cpu", "gpu")
#: The columns of Table 1, and whether less is better.
TABLE = {"composition": True, "identity": True, "inverse": True, "displacement": False}


def contenders(seed: int) -> tuple[ModelEntry, ...]:
    """AC-LAM, then its rivals."""
    return (ac_lam_model(seed), *rivals(seed))


def scores(record: dict[str, Any]) -> dict[str, float]:
    """Table 1's row of a record: the scale-free errors and the correlation."""
    found = {name: record[name]["relative"]["mean"] for name in ("composition", "identity", "inverse")}
    return found | {"displacement": record["displacement"]["mean"] if record["displacement"] else float("nan")}


def better(metric: str, ours: list[float], theirs: list[float]) -> bool:
    """Ours is better in a column of Table 1, paired over seeds."""
    return below(ours, theirs) if TABLE[metric] else below(theirs, ours)


def table(records: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, list[float]]]:
    """Table 1: every metric, its raw form, the gate, and the controls' spread; one value a seed."""
    metrics = {}
    for name, of_seeds in records.items():
        rows = [scores(record) for record in of_seeds]
        metrics[name] = {metric: [row[metric] for row in rows] for metric in TABLE}
        metrics[name] |= {
            f"{m}, raw": [r[m]["raw"]["mean"] for r in of_seeds] for m in ("composition", "identity", "inverse")
        }
        metrics[name] |= {"spread": [r["spread"] for r in of_seeds], **gains(of_seeds)}
    return metrics


def compared(
    lab: StructureStudy,
    seeds: tuple[int, ...],
    models: Callable[[int], tuple[ModelEntry, ...]] = contenders,
    only: Collection[str] = (),
) -> dict[str, list[dict[str, Any]]]:
    """The records of the models of each seed; ``only``: those with these labels."""
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in seeds:
        for model in models(seed):
            if not only or model.label in only:
                found.setdefault(model.label, []).append(lab.record(model))
    return found


def structure(experiment: Experiment) -> Outcome:
    """Table 1 on one backbone: Eq. 7 to 10 for AC-LAM, LAPA, UniVLA and villa-X, which decide, and for every other method; then
    for AC-LAM and its closest rival at smaller sizes."""
    lab = StructureStudy(experiment, many=True)
    records = compared(lab, experiment.seeds, lambda seed: (*contenders(seed), *other_methods(seed)))
    metrics, unused = table(records), invalid_entries(records)
    ours, *others = [model.label for model in contenders(0)]
    valid = [name for name in others if name not in unused]
    won = {m: [name for name in valid if better(m, metrics[ours][m], metrics[name][m])] for m in TABLE}
    text = " ".join(f"{m.capitalize()}: {means_of(metrics, m, 3)}." for m in TABLE)
    text += f" AC-LAM is better beyond doubt than {', '.join(others)} in {sum(map(len, won.values()))} of "
    text += f"{len(TABLE) * len(valid)} comparisons.{void_text(unused)}"
    closest = min(valid, key=lambda name: interval(metrics[name]["composition"]).mean, default=ours)
    trend: dict[str, dict[str, list[float]]] = {}
    for size in lab.setup.smaller:
        of_size = compared(lab.of_size(size), experiment.seeds, only=(ours, closest))
        small = table(of_size)
        text += f" At size {size}, composition: {means_of(small, 'composition', 3)}; displacement: {means_of(small, 'displacement', 3)}."
        text += void_text(invalid_entries(of_size))
        trend |= {f"{name}, {size}": values for name, values in small.items()}
    controls = table(lab.controls([ac_lam_model(seed) for seed in experiment.seeds]))
    errors = [m for m in TABLE if TABLE[m]]
    return Outcome(
        metrics=metrics | controls | trend,
        holds=ours not in unused and bool(valid) and all(won[m] == valid for m in TABLE),
        explanation=text,
        plot=BarPlot(
            "Structure of the latent (lower is better)",
            "error over the latent's length",
            errors,
            {name + " (void)" * (name in unused): [interval(v[m]) for m in errors] for name, v in metrics.items()},
        ),
    )


def environments(experiment: Experiment) -> Outcome:
    """An XGBoost classifier reads the environment off the latents of LAMs trained on all of them (Table 2)."""
    lab = StructureStudy(experiment, many=True)
    s = lab.setup
    # New episodes: the test splits of small sets have one or two, too few to tell an environment from an episode.
    arm, *others = (
        str(lab.dataset(replace(r, frames=max(2 * s.leakage, 300), seed=r.seed + 1))) for r in (s.data, *s.environments)
    )
    places = [*((arm, camera) for camera in open_source(arm).cameras), *((path, None) for path in others)]
    clips = [
        sample_split(
            DataConfig((path,), s.options["image"], 2, s.gap, camera, action=None, workers=0), "train", s.leakage
        )
        for path, camera in places
    ]
    metrics: dict[str, dict[str, list[float]]] = {}
    pairs, episode = (
        torch.cat([c.frames for c in clips]),
        torch.cat([1000 * n + c.episode for n, c in enumerate(clips)]),
    )
    ignored: dict[str, LatentUse] = {}
    for seed in experiment.seeds:
        loaded = {model: lab.load(model, mixture=True) for model in contenders(seed)}
        for model, trained in loaded.items():
            use = latent_use(lab.subject(model, trained), pairs[:, 0], pairs[:, 1], episode)
            if not use.used:
                ignored[model.label] = use
        subjects = [lab.subject(model, trained) for model, trained in loaded.items()]
        bare = random_weights_subject(next(iter(loaded.values())), lab.unlabelled(mixture=True), seed=seed)
        for name, found in leakages([*subjects, bare], clips, seed).items():
            own = metrics.setdefault(name, {"accuracy": [], "accuracy, unseen episodes": []})
            own["accuracy"].append(found.accuracy.mean)
            own["accuracy, unseen episodes"].append(found.unseen.mean if found.unseen else float("nan"))
    ours, *others = [model.label for model in contenders(0)]
    valid = [name for name in others if name not in ignored]
    lower = [name for name in valid if below(metrics[ours]["accuracy"], metrics[name]["accuracy"])]
    unused = {name: use.text() for name, use in ignored.items()}
    text = (
        f"Accuracy over {len(clips)} environments (chance {1 / len(clips):.2f}): {means_of(metrics, 'accuracy', 3)}. "
        f"AC-LAM's is below that of {', '.join(lower) or 'none'} beyond doubt.{void_text(unused)}"
    )
    return Outcome(
        metrics=metrics,
        holds=ours not in ignored and bool(valid) and lower == valid,
        explanation=text,
        plot=BarPlot(
            "How much of the environment a classifier reads",
            "accuracy",
            list(metrics),
            {"random split": [interval(m["accuracy"]) for m in metrics.values()]},
            {"chance": Interval(1 / len(clips), None, None)},
        ),
    )


def design(experiment: Experiment) -> Outcome:
    """Table 5: where and how composition is asked for; which variants collapse, explode or ignore their latent."""
    lab = StructureStudy(experiment, many=True)
    forms = ("fdm", "fdm-pre", "idm", "idm-stop-direct", "idm-stop-sum")
    metrics: dict[str, dict[str, list[float]]] = {}
    fate: dict[str, list[str]] = {}
    for form in forms:
        models = [ac_lam_model(seed, form) for seed in experiment.seeds]
        name = models[0].label
        own = metrics[name] = {m: [] for m in (*TABLE, "stable", "latent used")}
        fate[form] = []
        for model in models:
            stopped = lab.stopped(model)
            record = None if stopped else lab.record(model)
            values = scores(record) if record else dict.fromkeys(TABLE, float("nan"))
            for m in TABLE:
                own[m].append(values[m])
            own["stable"].append(float(stopped is None))
            own["latent used"].append(float(record is not None and record["void"] is None))
            fate[form].append(stopped or ("stable" if record and not record["void"] else "latent ignored"))

    def all_are(form: str, *fates: str) -> bool:
        return all(f in fates for f in fate[form])

    default, direct = (metrics[ac_lam_model(0, form).label] for form in ("fdm", "idm-stop-direct"))
    before = metrics[ac_lam_model(0, "fdm-pre").label]
    as_in_paper = {
        "default stable": all_are("fdm", "stable"),
        "better than before the quantiser": below(default["composition"], before["composition"])
        and below(before["displacement"], default["displacement"]),
        "IDM collapses": all_are("idm", "collapse", "latent ignored"),
        "sg on the sum explodes": all_are("idm-stop-sum", "explosion"),
        "sg on z_ik stable": all_are("idm-stop-direct", "stable"),
        "and weaker": below(default["composition"], direct["composition"])
        and below(direct["displacement"], default["displacement"]),
    }
    ends = "; ".join(f"{ac_lam_model(0, form).label}: {', '.join(dict.fromkeys(fate[form]))}" for form in forms)
    kept = ", ".join(name for name, right in as_in_paper.items() if right)
    bars = {name: [interval(m[c]) for c in ("composition", "displacement")] for name, m in metrics.items()}
    return Outcome(
        metrics=metrics,
        holds=all(as_in_paper.values()),
        explanation=f"{ends}. As in the paper: {kept or 'nothing'}.",
        plot=BarPlot("Design of the composition term", "Eq. 7, and r of Eq. 8", ["composition", "displacement"], bars),
    )


def norms(experiment: Experiment) -> Outcome:
    """|f(o_0, o_t)| against |s_t - s_0| along held-out episodes (Fig. 1, 3)."""
    lab = StructureStudy(experiment, many=True)
    source = open_source(lab.dataset())
    unused = invalid_entries(compared(lab, experiment.seeds))
    metrics: dict[str, dict[str, list[float]]] = {}
    shown: dict[str, Trajectory] = {}
    for seed in experiment.seeds:
        loaded = {model: lab.load(model) for model in contenders(seed)}
        subjects = [lab.subject(model, trained) for model, trained in loaded.items()]
        bare = random_weights_subject(next(iter(loaded.values())), lab.unlabelled(), seed=seed, name=RANDOM)
        for subject in (*subjects, bare, pixel_change(PIXELS)):
            found = trajectories(subject, source, lab.setup.options["image"], state=STATE, split=lab.setup.split)
            own = metrics.setdefault(subject.name, {"r per episode": []})
            # A norm that never moves follows nothing.
            own["r per episode"].append(float(np.mean([0.0 if np.isnan(t.r) else t.r for t in found])))
            shown.setdefault(subject.name, max(found, key=lambda t: len(t.seconds)))
    ours, *others = [model.label for model in contenders(0)]
    valid = [name for name in others if name not in unused]
    ahead = [name for name in valid if below(metrics[name]["r per episode"], metrics[ours]["r per episode"])]
    first = next(iter(shown.values()))
    every = slice(None, None, max(1, len(first.seconds) // 40))
    assert first.displacement is not None  # MetaWorld tells its state
    drawn = {name + " (void)" * (name in unused): t.length for name, t in shown.items() if name != RANDOM}
    lines = {"displacement": first.displacement, **drawn}
    return Outcome(
        metrics=metrics,
        holds=ours not in unused and bool(valid) and ahead == valid,
        explanation=f"Mean correlation per episode: {means_of(metrics, 'r per episode', 3)}. "
        f"AC-LAM's is above that of {', '.join(ahead) or 'none'} beyond doubt.{void_text(unused)}",
        plot=LinePlot(
            "Latent length along a held-out episode (first seed)",
            "seconds",
            "share of the largest value",
            first.seconds[every].tolist(),
            {name: [Interval(float(v), None, None) for v in values[every]] for name, values in lines.items()},
        ),
    )


def motion_transfer(experiment: Experiment) -> Outcome:
    """F(o', z_ik) against F(o', z_ij + z_jk) from a frame o' of another episode (App. E.1)."""
    lab = StructureStudy(experiment, many=True)
    records = compared(lab, experiment.seeds)
    metrics = {
        name: {
            title: [r["transfer"][title]["mean"] for r in of_seeds]
            for title in ("agreement", "by_chance", "margin", "moved")
        }
        for name, of_seeds in records.items()
        if "transfer" in of_seeds[0]
    }
    if not metrics:
        raise LaminaError("no model of this setup predicts pictures")
    unused = invalid_entries({name: records[name] for name in metrics})
    ours, *others = metrics
    agrees = below(metrics[ours]["by_chance"], metrics[ours]["agreement"])
    valid = [name for name in others if name not in unused]
    leads = [name for name in valid if below(metrics[name]["margin"], metrics[ours]["margin"])]
    picture = experiment.workdir / "ac-lam-motion-transfer.png"
    first = ac_lam_model(experiment.seeds[0])
    composed_picture(lab.subject(first, lab.load(first)), lab.held().triplets, picture, rows=6)
    return Outcome(
        metrics=metrics,
        holds=ours not in unused and agrees and leads == valid,
        explanation=f"PSNR in dB between the two frames: {means_of(metrics, 'agreement', 2)}; above that with another "
        f"triplet's latent by {means_of(metrics, 'margin', 2)}.{void_text(unused)}",
        picture=picture,
    )


CLAIMS = (
    Claim(
        id="ac_lam/structure",
        statement="AC-LAM has lower composition, identity and inverse errors, and its norm tells displacement better.",
        paper="Table 1: on Fractal 0.086, 0.151 and 0.156, with r = 0.489.",
        decides="The four metrics of Eq. 7 to 10 on one backbone: AC-LAM is better than LAPA, UniVLA and villa-X in each, paired over "
        "seeds (the other methods stand beside them); a model that ignores its latent is named and its scores are void.",
        run=structure,
        scales=SCALES,
    ),
    Claim(
        id="ac_lam/leakage",
        statement="A classifier reads less about the environment from AC-LAM's latent.",
        paper="Table 2: accuracy 50.2% against 63.0, 80.2 and 52.0%.",
        decides="Accuracy of an XGBoost probe over four environments (two cameras of MetaWorld, cheetah, Doom), split 80/20: AC-LAM's is "
        "below that of each rival, all trained on the four and probed on new episodes, paired over seeds; an untrained encoder and "
        "the first frame's pixels beside it.",
        run=environments,
        scales=SCALES,
    ),
    Claim(
        id="ac_lam/design",
        statement="Composing after the quantiser works best; the inverse-dynamics form without stop-gradient "
        "collapses, stopping the sum's gradient explodes, stopping z_ik's is stable but weaker.",
        paper="Table 5: five variants.",
        decides="The five variants, with a detector of collapse and one of explosion: the default stable, with a lower Eq. 7 and a higher "
        "r than before the quantiser; IDM collapsed or its latent ignored, sg on the sum exploded, sg on z_ik stable with a higher "
        "Eq. 7 and a lower r; for every seed.",
        run=design,
        scales=SCALES,
    ),
    Claim(
        id="ac_lam/norm-trajectory",
        statement="Along a trajectory the latent's norm follows the displacement.",
        paper="Fig. 1 and 3: plots.",
        decides="Mean correlation per held-out episode of |f(o_0, o_t)| and |s_t - s_0|: AC-LAM's is above that of each rival, paired over "
        "seeds; and the plot.",
        run=norms,
        scales=SCALES,
    ),
    Claim(
        id="ac_lam/policy",
        statement="AC-LAM's latents supervise a policy better.",
        paper="Tables 3 and 4: 55/42/41 against 42/25/31.",
        decides="Closed-loop success with the latents of each LAM.",
    ),
    Claim(
        id="ac_lam/motion-transfer",
        statement="From another start, z_ij + z_jk and z_ik decode to the same frame.",
        paper="Appendix E: pictures.",
        decides="PSNR between the two frames decoded from a frame of another episode: above that with another triplet's latent, and "
        "by more than for each rival that predicts pictures, paired over seeds; and the picture.",
        run=motion_transfer,
        scales=SCALES,
    ),
)
