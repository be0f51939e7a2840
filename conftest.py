"""In tests that are marked ``typed``, every call of the library is checked against its annotations: shapes, data types, classes.

A test of bad input calls functions with what their annotations forbid; in a marked module it is marked ``typed(False)``.
"""

from __future__ import annotations

import atexit
import importlib
import os
import random
import shutil
import tempfile

import jaxtyping
import pytest
from hypothesis import settings

# The processes of pytest -n share the cores: more threads would wait for each other. Read when torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Features of pretrained encoders are kept in a folder of this session alone (lamina.models.feature_cache).
os.environ["LAMINA_CACHE"] = tempfile.mkdtemp(prefix="lamina-tests-")
atexit.register(shutil.rmtree, os.environ["LAMINA_CACHE"], ignore_errors=True)

# Nothing is fetched: what is not on the machine is missing at once, and not after 23 seconds of retries. Read when the hub is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# What a module imports while the hook below loads it is compiled anew, so the largest libraries are imported before.
for library in ("beartype", "sklearn.linear_model", "torch._dynamo", "torchmetrics"):
    importlib.import_module(library)
jaxtyping.install_import_hook(["lamina", "lamina_research"], "checker.check")
jaxtyping.config.update("jaxtyping_disable", True)  # outside of tests

# What a killed process has written stays with the system, so only tests of a power cut would have to wait for the disk.
os.fsync = lambda handle: None

# How long an example takes is the machine's matter: no test is timed.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)  # before the fixtures of a module
def pytest_runtest_setup(item: pytest.Item) -> None:
    import numpy as np
    import torch

    # What a test draws without a seed of its own does not depend on the tests before it.
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    mark = item.get_closest_marker("typed")
    jaxtyping.config.update("jaxtyping_disable", mark is None or mark.args == (False,))
