# make demo: export the reference bundle and run it.   make test: the whole suite.   Both make .venv first.
# TORCH_INDEX=URL: where a CPU build of torch is, which needs no CUDA libraries; without it, what pip finds.
PYTHON ?= python3
PIP := .venv/bin/python -m pip --disable-pip-version-check
.PHONY: demo test check

demo: .venv/.done
	.venv/bin/posekit demo

test: .venv/.done
	# a worker per core, each computing on its own: files stay whole, for what they set up once
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --dist loadfile

check: .venv/.done
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	# torch first and alone, so that no other package is looked for at its address
	$(PIP) install -q --no-deps $(if $(TORCH_INDEX),--retries 1 --extra-index-url $(TORCH_INDEX)) -c constraints.txt torch
	$(PIP) install -q -c constraints.txt -e '.[export,test]'
	touch $@
