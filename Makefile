# make test         sets up .venv, checks the style and runs the tests: all on
#                   TensorFlow, the numeric ones also on JAX
# make quickstart   trains, exports and verifies a small CaiT; see README.md
# make docs         builds the site in build/site/site/
# make constraints  resolves the versions of constraints.txt again

PYTHON ?= python3
RUN ?= runs/quickstart
CONSTRAINTS ?= constraints.txt
BIN := .venv/bin
# Where Keras backends can differ; all tests of the library pass on both.
NUMERICS := $(addprefix tests/keras_cait/test_,attention_maps.py \
  fit.py fused_mixing.py layers.py optimizers.py reference.py) \
  keras_cait/gradients.py

# Two files of tests at a time, in the order of setup.cfg.
WORKERS := --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Both exports at a time.
MAKEFLAGS += --jobs=2

# An environment keeps the Python that made it.
ifneq ($(origin PYTHON), file)
ifneq ($(wildcard $(BIN)/python),)
ifneq ($(shell $(BIN)/python -V), $(shell $(PYTHON) -V))
$(error .venv has $(shell $(BIN)/python -V). To use $(PYTHON), remove it \
  first: rm -r .venv)
endif
endif
endif

.PHONY: test quickstart docs constraints
.DELETE_ON_ERROR:

test: .venv/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/hadolint Dockerfile
	$(BIN)/pyright --pythonpath $(BIN)/python
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest $(WORKERS)
	KERAS_BACKEND=jax $(BIN)/python -m pytest $(WORKERS) $(NUMERICS)

docs: .venv/docs
	$(BIN)/python docs/site/build.py

# The newest versions that fit together, for installing the same everywhere.
constraints:
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet -r requirements/test.txt
	build/constraints/bin/python -m pip freeze --exclude keras-cait \
	  > constraints.txt

quickstart: $(RUN)/report.html
	@echo "To start afresh, delete $(RUN)"

.venv/%: setup.cfg $(CONSTRAINTS) $(wildcard requirements/*.txt)
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and \
	  f'Python 3.11 or later is needed. Got {sys.version.split()[0]}; \
	try make PYTHON=python3.12')"
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c $(CONSTRAINTS) \
	  -r requirements/$*.txt
	touch $@

# Each step of the quickstart is one command of the project, run only where its
# result is missing: re-run make to resume it; a finished one stays.
$(RUN)/model.keras: | .venv/quickstart
	$(BIN)/python -m training.train quickstart --output $(RUN)

$(RUN)/models/digits/1: | $(RUN)/model.keras
	$(BIN)/python -m export saved-model --model $(RUN) \
	  --output $(RUN)/models/digits

$(RUN)/model.tflite: | $(RUN)/model.keras
	$(BIN)/python -m export litert --model $(RUN) --output $@

$(RUN)/verify.json: | $(RUN)/models/digits/1 $(RUN)/model.tflite
	$(BIN)/python -m export verify $(RUN)/models/digits $(RUN)/model.tflite \
	  --model $(RUN) --data folder:$(RUN) --output $@

# Training has written it, without the exported files.
$(RUN)/report.html: $(RUN)/verify.json
	$(BIN)/python -m training.report $(RUN)
