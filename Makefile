# One command for each thing a developer does. `make demo` and `make test` set up what they need.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE := $(wildcard embedding_store/native/*.cc embedding_store/native/*.h)
NATIVE_TESTS := $(wildcard embedding_store/native/test/*.cc)
FOLDERS := embedding_store logs models pipelines runners serving transforms
PRISM_VERSION := v2.77.0
# Processes that tests run in; 0: this one alone, as a debugger wants it.
WORKERS ?= 2
# The environment may say otherwise, but hundreds of processes would each compile every module again.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder --durations 40

.PHONY: setup demo test test-faults explore lint format typing native-sanitize bench prism pubsub-fake cluster-setup clean

setup: $(STAMP)

$(VENV)/bin/uv:
	$(PYTHON) -c 'import sys; assert sys.version_info[:2] == (3, 11), f"cuckooflow needs Python 3.11, this is {sys.version}"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q uv

$(STAMP): $(VENV)/bin/uv requirements.txt requirements-confluent.txt requirements-dev.txt setup.py pyproject.toml $(NATIVE)
	$(BIN)/uv pip install -q --compile-bytecode -p $(BIN)/python -r requirements-dev.txt
	$(BIN)/uv pip install -q -p $(BIN)/python --no-build-isolation --no-deps -e .
	touch $@

demo: $(STAMP)
	$(BIN)/cuckooflow demo

test: $(STAMP) prism pubsub-fake cluster-setup
	$(PYTEST) -m "not deep"

# Every fault, and whatever else takes minutes on a real Flink.
test-faults: $(STAMP) pubsub-fake cluster-setup
	$(PYTEST) -v -m "fault or deep"

# Property tests with new random examples; a failure prints how to have it again.
explore: $(STAMP)
	CUCKOOFLOW_EXPLORE=1 $(BIN)/python -m pytest -m hypothesis

lint: $(STAMP) typing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/typing && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p cuckooflow
	$(BIN)/clang-format --dry-run --Werror $(NATIVE) $(NATIVE_TESTS)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE) $(NATIVE_TESTS)

# mypy has no notion of package_dir: it is given the import layout as links.
typing:
	mkdir -p build/typing/cuckooflow
	ln -sfn $(CURDIR)/cuckooflow/*.py $(CURDIR)/cuckooflow/py.typed build/typing/cuckooflow/
	for folder in $(FOLDERS); do ln -sfn $(CURDIR)/$$folder build/typing/cuckooflow/$$folder; done

# The native core without its bindings, stressed under the address and undefined behaviour sanitizers, then
# under the thread sanitizer. That one wants memory where address randomisation may put something else.
SANITIZED := $(filter-out %binding.cc,$(filter %.cc,$(NATIVE))) $(NATIVE_TESTS)
native-sanitize:
	mkdir -p build/sanitize
	for kind in address,undefined thread; do \
	  $(CXX) -std=c++17 -O1 -g -fno-math-errno -Wall -Wextra -Werror -pthread -fno-omit-frame-pointer -fsanitize=$$kind \
	    -fno-sanitize-recover=all $(SANITIZED) -o build/sanitize/stress-$$kind || exit 1; \
	  if setarch -R true 2> /dev/null; then plain="setarch -R"; else plain=; fi; \
	  timeout 300 $$plain build/sanitize/stress-$$kind || exit 1; \
	done

bench: $(STAMP)
	$(BIN)/python benchmarks/join.py --quick
	$(BIN)/python benchmarks/quality.py --quick
	$(BIN)/python -m benchmarks.store --quick
	$(BIN)/python -m benchmarks.train --quick
	$(BIN)/python -m benchmarks.freshness --quick

# Beam's Prism runner, built from its Go module; tests that need it skip with a reason where Go is absent.
prism:
	@if [ -x .cache/bin/prism ]; then :; \
	elif command -v go > /dev/null; then \
	  GOBIN=$(CURDIR)/.cache/bin go install github.com/apache/beam/sdks/v2/go/cmd/prism@$(PRISM_VERSION); \
	else echo "no Go here: the Prism tests will be skipped"; fi

# The fake Pub/Sub of Google's Go client as a process; tests that need it skip with a reason where Go is absent.
pubsub-fake:
	@if ! command -v go > /dev/null; then echo "no Go here: the Pub/Sub tests will be skipped"; \
	elif [ ! -x .cache/bin/pubsub-fake ] || [ -n "$$(find tests/pubsub_fake -newer .cache/bin/pubsub-fake)" ]; then \
	  cd tests/pubsub_fake && go build -o $(CURDIR)/.cache/bin/pubsub-fake . ; fi

# What the local cluster is made of: jars, and an environment with a wheel of this checkout for its workers. All of
# it lies in a cache, by checksum of what it is made of, so a second time takes seconds.
cluster-setup: $(STAMP)
	@if command -v java > /dev/null && command -v mvn > /dev/null; then $(BIN)/cuckooflow cluster fetch; \
	else echo "no Java or no Maven here: the tests on Kafka and Flink will be skipped"; fi

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache embedding_store/_native*.so
	rm -f $(STAMP)
