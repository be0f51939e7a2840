"""A process that runs claims for a queue (:mod:`lamina_research.scheduler`), so that several models train at a time.

    python -m lamina_research.worker THREADS

Orders come on standard input and answers leave on standard output, one JSON object a line. The process ends when its input is closed, as
it is when the queue is killed.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from lamina.errors import LaminaError
from lamina.files import reason
from lamina_research.cache import Busy
from lamina_research.reproduce import Job, find_claim, run_job

Message = dict[str, Any]


def order_of(job: Job, seeds: tuple[int, ...], last: bool) -> Message:
    """The order to run a claim with some of its seeds; ``last``: and to write its record."""
    return {
        "claim": job.claim.id, "scale": job.scale, "seeds": seeds, "out": str(job.out), "figure": str(job.figure),
        "workdir": str(job.workdir), "values": None if job.values is None else str(job.values), "last": last,
    }  # fmt: skip


def job_of(order: Message) -> Job:
    out, figure, workdir = (Path(order[name]) for name in ("out", "figure", "workdir"))
    values = None if order["values"] is None else Path(order["values"])
    return Job(find_claim(order["claim"]), order["scale"], tuple(order["seeds"]), out, figure, workdir, values)


def work(order: Message, tell: Callable[[Message], None]) -> Message:
    """Runs a claim and returns what became of it: "done", "busy" with the runs that other processes build, or "failed" and why.

    What the claim says, and what happens to runs of the cache, is told meanwhile.
    """
    job = job_of(order)
    experiment = job.experiment(
        lambda line: tell({"said": line}), wait=False, events=lambda event: tell({"event": asdict(event)})
    )
    try:
        if order["last"]:
            return {"outcome": "done", "record": str(run_job(job, experiment))}
        assert job.claim.run is not None
        job.claim.run(experiment)
        return {"outcome": "done"}
    except Busy as busy:
        return {"outcome": "busy", "runs": list(map(str, busy.runs))}
    except Exception as error:  # a claim may raise anything; the queue goes on with others
        traceback.print_exc()
        where = next(iter(getattr(error, "__notes__", ())), f"seed {', '.join(map(str, job.seeds))}")
        what = str(error) if isinstance(error, LaminaError) else f"{type(error).__name__}: {reason(error)}"
        return {"outcome": "failed", "why": f"{where}: {what}"}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # what anything prints goes to the log, with the errors
    torch.set_num_threads(int(sys.argv[1]))
    orders: SimpleQueue[Message] = SimpleQueue()

    def receive() -> None:
        for line in sys.stdin:
            orders.put(json.loads(line))
        os._exit(1)  # the queue has ended

    threading.Thread(target=receive, daemon=True).start()

    def tell(message: Message) -> None:
        answers.write(json.dumps(message) + "\n")

    while True:
        tell(work(orders.get(), tell))


if __name__ == "__main__":
    main()
