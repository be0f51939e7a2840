"""One training of a comparison in a process of its own: train, align, evaluate, and play. What is done is not done again.

    python -m lamina.comparison.worker OUT METHOD SEED THREADS

The process ends when its standard input is closed, as it is when the comparison is killed.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from lamina import api
from lamina.comparison.plan import CompareConfig, Plan, run_folder, stage_folder
from lamina.errors import LaminaError
from lamina.evaluation import evaluate as evaluation
from lamina.evaluation.probes.translation import kept_references
from lamina.evaluation.report.page import write_report
from lamina.evaluation.settings import EvaluateConfig
from lamina.files import read_json, reason, to_json, write_text
from lamina.models.hub import LatentActionModel
from lamina.policies.rollout import rollout
from lamina.training.checkpoints import Checkpoints
from lamina.training.diagnostics import DegenerateLatents
from lamina.training.loop import Diverged
from lamina.training.pretraining import pretrain

FAILED, FACTS, PLAYED = "failed.json", "facts.json", "rollout.json"


def save_plan(out: Path, plan: Plan) -> None:
    """OUT/plan.json."""
    write_text(out / "plan.json", to_json({"format": 1, **dataclasses.asdict(plan)}, indent=1) + "\n")


def load_plan(out: Path) -> Plan:
    """OUT/plan.json. Raises LaminaError if it is not there or damaged."""
    path = out / "plan.json"
    values = read_json(path, "choose another --out")
    try:
        tuples: dict[str, Any] = {
            name: {k: tuple(v) if isinstance(v, list) else v for k, v in values[name].items()}
            for name in ("config", "evaluate")
        }
        config, evaluate = CompareConfig(**tuples["config"]), EvaluateConfig(**tuples["evaluate"])
        return Plan(values["data"], config, evaluate, values["given"], values["steps"])
    except (KeyError, TypeError, AttributeError) as error:
        raise LaminaError(f"{path}: not the plan of a comparison ({reason(error)}); choose another --out") from error


def train(plan: Plan, out: Path, name: str, seed: int) -> None:
    """Train a method in all its stages, and keep what it cost."""
    steps, stages = plan.steps[name], plan.stages(name)
    init, spent = None, 0.0
    for stage in stages or (None,):
        folder = stage_folder(out, name, seed, stage)
        share = steps // len(stages) if stages else steps
        if not (folder / "model" / "model.safetensors").exists():
            recipe, data, training = plan.prepared(name, seed, share, **({} if stage is None else {"stage": stage}))
            done, began = Checkpoints(folder, training.keep).last(share), time.process_time()
            pretrain(folder, recipe, data, training, init)
            write_text(
                folder / "cost.json", to_json({"seconds": (time.process_time() - began) * share / max(1, share - done)})
            )
        spent += float(read_json(folder / "cost.json", "delete the folder").get("seconds", 0.0))
        init = folder
    run = run_folder(out, name, seed)
    model = LatentActionModel.from_pretrained(str(run))
    facts = {
        "cpu_seconds": spent,
        "steps": steps,
        "parameters": sum(p.numel() for p in model.lam.parameters()),
        "side": model.config.action_side,
    }
    write_text(run / FACTS, to_json(facts, indent=1) + "\n")


def work(out: Path, name: str, seed: int) -> None:
    """All stages of one training. A method that fails leaves failed.json, with its reason in one line."""
    plan, run = load_plan(out), run_folder(out, name, seed)
    try:
        if not (run / FACTS).exists():
            train(plan, out, name, seed)
        e, c = plan.evaluate, plan.config
        shared: dict[str, Any] = {"device": e.device, "precision": e.precision}
        if not (run / "translator" / "translator.json").exists():
            api.align(
                run, plan.data, labels=e.labels or "5%", steps=c.align_steps, seed=seed, camera=e.camera, action=e.action,
                actions=e.actions or "first", **shared,
            )  # fmt: skip
        if not (run / "report.html").exists():
            with kept_references(out / "references"):
                evaluation.evaluate(run, plan.data, dataclasses.replace(e, labels=None, seed=seed))
            write_report(run)
        if c.world and not (run / PLAYED).exists():
            if not (run / "policy" / "config.json").exists():
                api.train_policy(run, plan.data, kind="latent", resume=True, steps=c.policy_steps, seed=seed, **shared)
            rollout(run, [c.world], episodes=c.episodes, parallel=2, out=run / PLAYED, progress=False)
    except (LaminaError, ArithmeticError, RuntimeError) as error:
        traceback.print_exc()
        kind = (
            error.kind
            if isinstance(error, DegenerateLatents)
            else "diverged"
            if isinstance(error, Diverged)
            else "failed"
        )
        write_text(run / FAILED, to_json({"kind": kind, "reason": reason(error)}, indent=1) + "\n")


def _end_with_owner() -> None:
    # Returns when the other end is closed. Not sys.stdin.read(), whose lock would be held when this process ends by itself.
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def main() -> None:
    out, name, seed, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    threading.Thread(target=_end_with_owner, daemon=True).start()
    work(Path(out), name, int(seed))


if __name__ == "__main__":
    main()
