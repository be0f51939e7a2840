# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install develop demo test coverage lint types readme readme-install test-lerobot bench clean
.DELETE_ON_ERROR:

# torch first and by itself: a looser requirement would bring the newest CUDA build and gigabytes with it.
$(BIN)/torch-is-here:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "torch==2.13.0"
	touch $@

$(BIN)/demo-is-here: $(BIN)/torch-is-here pyproject.toml research/pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[doom,play]" -e research
	touch $@

$(BIN)/dev-is-here: $(BIN)/demo-is-here
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[sim,dev]" -e research
	touch $@

install: $(BIN)/demo-is-here

develop: $(BIN)/dev-is-here

demo: $(BIN)/demo-is-here
	$(BIN)/python demo.py

test: $(BIN)/dev-is-here
	$(BIN)/python -m pytest -n 2 --dist worksteal $(OPTIONS)

# Not part of CI, because measuring it takes half as long again. The files with the least coverage come first.
coverage: $(BIN)/dev-is-here
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=
	$(BIN)/coverage report

lint: $(BIN)/dev-is-here
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(BIN)/dev-is-here
	$(BIN)/mypy

readme: $(BIN)/dev-is-here
	$(BIN)/python tests/check_readme.py

# Follows README's section "Install" and installs the wheel, in empty environments; takes minutes, since it installs torch anew.
readme-install:
	$(PYTHON) tests/check_install.py

# lerobot's own reader needs other versions of everything, so it gets an environment of its own.
test-lerobot: $(BIN)/dev-is-here
	bash tests/lerobot_env.sh

bench: $(BIN)/dev-is-here
	$(BIN)/python bench/model.py
	$(BIN)/python bench/pipeline.py
	$(BIN)/python bench/memory.py
	$(BIN)/python bench/policy.py
	$(BIN)/python bench/play.py
	$(BIN)/python bench/label_files.py
	$(BIN)/python bench/threads.py

clean:
	rm -rf $(VENV) .venv-lerobot demo
