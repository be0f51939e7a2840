"""The checker of annotations that jaxtyping's import hook applies to the library in the tests (``--jaxtyping-packages`` in pyproject.toml)."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

#: An int is a float, as type checkers say (PEP 484).
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
