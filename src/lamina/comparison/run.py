"""`lamina compare`: trains, evaluates and tells -> OUT/comparison.json and OUT/comparison.html."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lamina.comparison.page import write_page
from lamina.comparison.plan import CompareConfig, Plan, cores, make_plan, run_folder
from lamina.comparison.table import CompareRow, Comparison, Figures, Finding, model_row, ranked, reference_rows, words
from lamina.comparison.worker import FACTS, FAILED, PLAYED, load_plan, save_plan
from lamina.data.stream import sample_split
from lamina.device import pick_device
from lamina.errors import LaminaError
from lamina.evaluation import evaluate as evaluation
from lamina.evaluation.pictures import grid, most_changed
from lamina.evaluation.record import Evaluation
from lamina.evaluation.settings import EvaluateConfig
from lamina.files import checkpoint_hash, json_of, locked, read_json, to_json, write_text
from lamina.inference.subject import Subject, load_subject, subject_of
from lamina.methods import name_of as method_name
from lamina.methods import names as known_methods
from lamina.models.hub import LatentActionModel, model_folder
from lamina.progress import progress_bar
from lamina.training.alignment import load_translator
from lamina.training.labelled import probe_data

RECORD, PICTURE = "comparison.json", "pictures/methods.png"
TIMED = 50  # decisions


def compare(
    data: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    methods: Sequence[str] = (),
    labels: int | str = "5%",
    budget: str = "3000steps",
    seeds: int = 3,
    subjects: Sequence[str | os.PathLike[str] | Subject] = (),
    world: str | None = None,
    **options: Any,
) -> Comparison:
    """Train every method on ``data``, evaluate each, and write one table: OUT/comparison.html and OUT/comparison.json.

    ``methods``: by name or file; default: all. ``budget``: of each training, in steps ("5000steps") or CPU time ("20m"). ``subjects``:
    runs, names of functions that return a Subject (module:function), or Subjects, which get rows without being trained. ``world``: an
    environment or suite in which policies on the latents act. ``options``: fields of CompareConfig and EvaluateConfig. Called again with
    the same ``out``, it goes on where it stopped; methods, seeds and subjects may be added.
    Raises LaminaError for data without actions or held-out episodes, a budget that is too small, a subject of another image size or with
    the name of another row, and an ``out`` that holds a comparison with other settings.
    """
    names = {f.name for f in dataclasses.fields(CompareConfig)}
    known = names | {f.name for f in dataclasses.fields(EvaluateConfig)}
    if unknown := [name for name in options if name not in known]:
        raise LaminaError(f"compare() has no option '{unknown[0]}'")
    own = {name: value for name, value in options.items() if name in names}
    config = CompareConfig(methods=tuple(methods), budget=budget, seeds=seeds, world=world, **own)
    evaluate = EvaluateConfig(labels=str(labels), **{n: v for n, v in options.items() if n not in names})
    return run_comparison(os.fspath(data), Path(out), config, evaluate, subjects)


#: Options that may differ when a comparison is continued: they add rows, or say how fast it goes.
MAY_CHANGE = ("methods", "seeds", "parallel")


def run_comparison(
    data: str, out: Path, config: CompareConfig, evaluate: EvaluateConfig, subjects: Sequence[Any] = ()
) -> Comparison:
    """:func:`compare` with its options as dataclasses."""
    evaluate = dataclasses.replace(evaluate, action=evaluate.action or "action")  # all are aligned here to the same one
    with locked(out / RECORD):
        given = load_subjects(subjects, config)
        plan = continued(out, data, config, evaluate)
        save_plan(out, plan)
        run_jobs(out, plan)
        rows = [*(method_row(out, plan, name) for name in plan.given), *subject_rows(out, plan, given)]
        models = ranked(rows)
        others = reference_rows({name: records_of(out, plan, name) for name in plan.given})
        drawn = picture(out, plan, models, given)
        facts = {
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "data": data, "budget": config.budget, "labels": evaluate.labels or "5%", "seeds": config.seeds, "world": config.world,
            "backbone": plan.options(""), "picture": PICTURE if drawn else None,
        }  # fmt: skip
        elsewhere = at_other_gaps(given, config)
        compared = [row for row in models if row.name not in elsewhere]
        result = Comparison(out, (*models, *others), (*words(compared, others), *elsewhere.values()), facts)
        write_text(out / RECORD, result.to_json() + "\n")
        write_page(result)
    return result


def continued(out: Path, data: str, config: CompareConfig, evaluate: EvaluateConfig) -> Plan:
    """The plan, with the steps that an earlier call found. Raises LaminaError where that had other settings."""
    if not (out / "plan.json").exists():
        if out.exists() and any(not entry.name.startswith(".") for entry in out.iterdir()):
            raise LaminaError(f"{out}: not empty and not a comparison; choose another --out")
        return make_plan(data, config, evaluate)
    before = load_plan(out)
    fixed = {f.name for f in dataclasses.fields(CompareConfig)} - set(MAY_CHANGE)
    changed = [n for n in sorted(fixed) if getattr(before.config, n) != getattr(config, n)]
    changed += [
        f.name for f in dataclasses.fields(evaluate) if getattr(before.evaluate, f.name) != getattr(evaluate, f.name)
    ]
    changed += ["data"] if before.data != data else []
    if changed:
        raise LaminaError(
            f"{out}: was started with other settings ({', '.join(changed)}); use the same ones, or another --out"
        )
    return make_plan(data, config, evaluate, before.steps)


# ------------------------------------------------------------------------------------------------------------ trainings


def run_jobs(out: Path, plan: Plan) -> None:
    """Every training that is not done, ``parallel`` at a time, each in a process with its share of the cores. The log of each is
    OUT/logs/METHOD-SEED.log. Processes end with this one, however it ends."""
    jobs = [(name, seed) for seed in range(plan.config.seeds) for name in plan.given]
    waiting = [job for job in jobs if not finished(out, plan, *job)]
    for name, seed in waiting:  # what failed for another reason than its own training is tried again
        (run_folder(out, name, seed) / FAILED).unlink(missing_ok=True)
    on_cpu = pick_device(plan.evaluate.device) == "cpu"
    parallel = min(plan.config.parallel or (cores() if on_cpu else 1), max(1, len(waiting)))
    threads = max(1, cores() // parallel)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    (out / "logs").mkdir(parents=True, exist_ok=True)
    running: dict[subprocess.Popen[bytes], tuple[str, int]] = {}
    bar = progress_bar(len(jobs), "compare", "training", initial=len(jobs) - len(waiting))
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                name, seed = waiting.pop(0)
                arguments = ["-m", "lamina.comparison.worker", str(out), name, str(seed), str(threads)]
                with (out / "logs" / f"{name}-{seed}.log").open("ab") as log:
                    process = subprocess.Popen(
                        [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment
                    )
                running[process] = (name, seed)
            time.sleep(0.1)
            for process in [p for p in running if p.poll() is not None]:
                running.pop(process)
                bar.update()
    finally:
        bar.close()
        for process in running:
            process.kill()
            process.wait()


def finished(out: Path, plan: Plan, name: str, seed: int) -> bool:
    """All of a training is done, or its method failed at it."""
    run = run_folder(out, name, seed)
    if (run / FAILED).exists():
        return bool(read_json(run / FAILED, "delete it").get("kind") != "failed")
    return (run / "report.html").exists() and (not plan.config.world or (run / PLAYED).exists())


# ------------------------------------------------------------------------------------------------------------ rows


def records_of(out: Path, plan: Plan, name: str) -> list[Evaluation | None]:
    """The evaluation of each seed of a method; None for one that failed."""
    runs = [run_folder(out, name, seed) for seed in range(plan.config.seeds)]
    return [
        Evaluation.from_dict(json_of(run / "evaluation.json")) if (run / "report.html").exists() else None
        for run in runs
    ]


def method_row(out: Path, plan: Plan, name: str) -> CompareRow:
    """The row of a method, also of one that failed."""
    runs = [run_folder(out, name, seed) for seed in range(plan.config.seeds)]
    records, more, side = records_of(out, plan, name), [], None
    state, why = "ok", ""
    for seed, run in enumerate(runs):
        extra: Figures = {}
        if (run / FAILED).exists():
            failure = read_json(run / FAILED, "delete it")
            state, why = str(failure.get("kind")), f"seed {seed}: {failure.get('reason')}"
        elif not finished(out, plan, name, seed):
            state, why = (
                "failed",
                f"seed {seed}: its process was ended, see {out / 'logs' / f'{name}-{seed}.log'}; run again to go on",
            )
        if (run / FACTS).exists():
            facts = read_json(run / FACTS, "delete it")
            side, extra["cost"] = facts["side"], facts["cpu_seconds"] / 60
        if (run / "translator" / "translator.json").exists():
            extra["latency"] = latency(run)
        if (run / PLAYED).exists():
            extra |= played(read_json(run / PLAYED, "delete it"))
        more.append(extra)
    return model_row(name, records, more, side, state=state, reason=why, steps=plan.steps[name])


def played(record: Mapping[str, Any]) -> Figures:
    """Success and return of a rollout's record, where there are some."""
    found = {}
    if record.get("success"):
        found["success"] = float(record["success"]["mean"])
    if record.get("above_random") is not None:
        found["return"] = float(record["above_random"])
    return found


@torch.no_grad()
def latency(run: Path) -> float:
    """Median milliseconds from two frames to an action, by encoder and translator; measured once and kept."""
    path = run / "latency.json"
    if not path.exists():
        model, (translator, note) = LatentActionModel.from_pretrained(str(run)), load_translator(run / "translator")
        frames = torch.from_numpy(
            np.random.default_rng(0).integers(0, 256, (2, 1, *model.config.image), dtype=np.uint8)
        )
        previous = torch.zeros(1, note.spec.dim)
        taken = []
        for _ in range(TIMED + 5):
            began = time.perf_counter()
            z = model.lam.action(model.encode(frames[0], frames[1]), note.side).float()
            observation = z.flatten(1) if note.observation else None
            translator(z, previous, observation)
            taken.append(1e3 * (time.perf_counter() - began))
        write_text(path, to_json({"milliseconds": float(np.median(taken[5:]))}) + "\n")
    return float(read_json(path, "delete it")["milliseconds"])


def load_subjects(given: Sequence[Any], config: CompareConfig) -> dict[str, Subject]:
    """Subjects by the names of their rows. Raises LaminaError for one of another image size, and for two rows of one name."""
    trained = {method_name(method) for method in config.methods or known_methods()}
    found: dict[str, Subject] = {}
    for one in given:
        if isinstance(one, Subject):
            name, subject = one.name, one
        elif ":" in str(one) and not Path(one).exists():
            subject = load_subject(str(one))
            name = subject.name
        else:
            model = LatentActionModel.from_pretrained(str(one))
            name = str(one)
            subject = dataclasses.replace(subject_of(model), checkpoint=checkpoint_hash(model_folder(Path(one))))
        if tuple(subject.image) != tuple(config.image):
            size, ours = "x".join(map(str, subject.image)), "x".join(map(str, config.image))
            raise LaminaError(
                f"{name}: reads pictures of {size}, this comparison is at {ours}; set --image {size.replace('x', ' ')}, or leave it out"
            )
        if name in found:
            raise LaminaError(f"--with {name}: name each model once")
        if name in trained:
            raise LaminaError(f"--with {name}: a method of this comparison has that name; give the subject another one")
        found[name] = subject
    return found


def subject_rows(out: Path, plan: Plan, given: Mapping[str, Subject]) -> list[CompareRow]:
    """Rows of models that were not trained here: evaluated with the same labels, a translator of their own for each seed. An evaluation of
    the same name and weights is kept."""
    rows = []
    for name, subject in given.items():
        records: list[Evaluation | None] = []
        plain = "".join(c if c.isalnum() else "_" for c in name)
        digest = hashlib.sha256(f"{name} {subject.checkpoint}".encode()).hexdigest()[:12]
        for seed in range(plan.config.seeds):
            folder = out / "with" / f"{plain}-{digest}-{seed}"
            if subject.checkpoint is None or not (folder / "evaluation.json").exists():
                options = dataclasses.replace(plan.evaluate, labels=plan.evaluate.labels or "5%", seed=seed)
                options = dataclasses.replace(options, translator_steps=plan.config.align_steps)
                evaluation.evaluate(dataclasses.replace(subject, name=name), plan.data, options, folder)
            records.append(Evaluation.from_dict(json_of(folder / "evaluation.json")))
        side = subject.config.action_side if subject.config else None
        rows.append(model_row(name, records, [{} for _ in records], side))
    return rows


def at_other_gaps(given: Mapping[str, Subject], config: CompareConfig) -> dict[str, Finding]:
    """A warning for each subject, by its name, whose pairs are another time apart than those of the methods. Its figures are of other
    transitions (a longer gap has harder ones), so the findings compare no method with it."""
    own = sum(config.gap) / 2
    return {
        name: ("warn", f"{name} is measured on pairs {subject.label_gap:g} s apart, its own gap, and the methods on pairs {own:g} s apart: "
                       "its figures are not compared with theirs. Set --gap to its own.")
        for name, subject in given.items() if not math.isclose(subject.label_gap, own)
    }  # fmt: skip


def picture(out: Path, plan: Plan, models: Sequence[CompareRow], given: Mapping[str, Subject]) -> bool:
    """OUT/pictures/methods.png: the same held-out transitions, predicted by every model of their gap that predicts pictures; whether there
    is one."""
    shown: dict[str, Subject] = {}
    for row in models:
        run = run_folder(out, row.name, 0)
        if row.name in given:
            shown[row.name] = given[row.name]
        elif (run / "model" / "model.safetensors").exists():
            shown[row.name] = subject_of(LatentActionModel.from_pretrained(str(run)))
    elsewhere = at_other_gaps(given, plan.config)
    shown = {name: subject for name, subject in shown.items() if subject.pictures and name not in elsewhere}
    if not shown:
        return False
    any_run = next((run_folder(out, n, 0) for n in plan.given if (run_folder(out, n, 0) / "model").exists()), None)
    if any_run is None:
        return False
    data = probe_data(LatentActionModel.from_pretrained(str(any_run)), plan.data, plan.evaluate.camera)
    clip = sample_split(dataclasses.replace(data, action=None), "test", 128)
    chosen = clip[most_changed(clip, 4)]
    src, dst = chosen.frames[:, 0], chosen.frames[:, 1]
    drawn = [s.quantised.draw(src, s.quantised.latents(src, dst)) for s in shown.values()]
    grid(out / PICTURE, ["frame", "next", *(Path(name).name for name in shown)], [src, dst, *drawn])
    return True
