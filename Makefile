# The chores. `make run` and `make test` do all the set-up they need; CI calls the same ones.
#
#   make run             install, answer a question about a picture with the bundled model, and open the page
#   make test            install, and run every check and test
#   make test-clients    install two dozen clients of the field and run them against a live server (needs node and npm)
#   make test-engines    install the engines over heavy libraries, each in an environment of its own, and run their tests
#   make page            build the chat page from page/ (needs node and npm)
#   make run TORCH=cu130 the same with a CUDA build of torch (any folder of download.pytorch.org/whl)

PYTHON ?= python3
VENV   ?= .venv
CLIENTS ?= $(VENV)-clients
TORCH  ?= cpu
BIN     = $(VENV)/bin
PICTURE ?= docs/example.png
QUESTION ?= What is in this picture?

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export OMP_NUM_THREADS ?= 1

.PHONY: run test sbom licences audit fuzz test-safety test-clients test-engines page screenshots matrix chromium test-hostile check unit wheel lock format clean install install-test
.DEFAULT_GOAL := run

run: install
	@echo "asking the bundled model: it comes with the package, nothing is fetched for it"
	@echo; echo '$$ trifocal ask $(PICTURE) "$(QUESTION)"'
	@$(BIN)/trifocal ask $(PICTURE) "$(QUESTION)"
	@if [ -n "$$CI" ] || [ ! -t 1 ]; then echo; echo "the page to chat with it: $(BIN)/trifocal serve --open"; \
	else echo; echo '$$ trifocal serve --open'; exec $(BIN)/trifocal serve --open; fi

test: install-test check unit

check:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# four for two cores: some of what tests wait for is no work, and on a machine that others use four get more of it than two
# what was compiled is kept, whatever the caller's environment says: else four processes rewrite every test's asserts
unit: export PYTHONDONTWRITEBYTECODE =
unit:
	$(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# tests at full size: 2,000 aborted requests, 1,200 slow clients, 500 examples an operation, all of thimble's questions
test-hostile: install-test
	TRIFOCAL_FULL=1 $(BIN)/pytest tests/api tests/model/test_bundled_model.py -n 2 --dist loadfile --max-worker-restart 0 -o faulthandler_timeout=0

# torch comes first and from its own index, since the plain registry has only the CUDA build for Linux.
# The CPU build is held to the lock's hash; another build is the reader's own choice.
$(VENV)/torch-$(TORCH):
	@echo "making $(VENV) and fetching torch ($(TORCH)), $(if $(filter cpu,$(TORCH)),about 200 MB,some gigabytes): minutes, once"
	@$(PYTHON) -m venv $(VENV)
ifeq ($(TORCH),cpu)
	@$(BIN)/pip install -q --retries 1 --no-deps --require-hashes --extra-index-url https://download.pytorch.org/whl/cpu -r requirements/torch.lock
else
	@$(BIN)/pip install -q --extra-index-url https://download.pytorch.org/whl/$(TORCH) "torch==2.13.0+$(TORCH)"
endif
	@touch $@

install: $(VENV)/torch-$(TORCH)
	@echo "installing transformers, the server's packages and trifocal itself into $(VENV)"
	@$(BIN)/pip install -q --no-deps --require-hashes -r requirements/run.lock
	@$(BIN)/pip install -q --no-deps --no-build-isolation -e .

install-test: install chromium
	@echo "installing what the tests need"
	$(BIN)/pip install -q --no-deps --require-hashes -r requirements/test.lock
	$(BIN)/python tests/real_model.py

# real clients in environments of their own, against a live server; WRITE=--write draws the table of docs/clients.md anew
test-clients: install
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/pip install -q --no-deps --require-hashes -r tests/clients/requirements.txt
	cd tests/clients && npm ci --no-audit --no-fund --loglevel error
	$(BIN)/python tests/clients/run.py $(abspath $(CLIENTS))/bin/python $(WRITE)

# engines over heavy libraries in environments of their own; ENGINE=ray runs that one alone, SHORT=1 what CI runs of them
test-engines: install-test
	$(BIN)/python tests/engines_real/run.py $(if $(SHORT),--short) $(ENGINE)

# the page's tests drive a real browser, the shell without a screen where there is one: the same engine for a third of the CPU time.
# As root it is fetched, else they say that it is missing
chromium:
	@command -v chromium-headless-shell >/dev/null || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	apt-get -qq update; { $(FETCH) chromium-headless-shell || command -v chromium || $(FETCH) chromium; } >/dev/null; fi
	@command -v chromium-headless-shell >/dev/null || command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
	echo "chromium is not installed: the page's browser tests will be skipped (apt-get install chromium-headless-shell)"
chromium: FETCH = apt-get -qq install -y --no-install-recommends

page:
	cd page && npm ci --no-audit --no-fund && npm run check && npm run build

# what docs/page shows, taken anew by the browser tests
screenshots: install-test
	TRIFOCAL_SCREENSHOTS=1 $(BIN)/pytest tests/web/test_page_browser.py tests/web/test_page_reading.py tests/web/test_page_models.py

# the table of docs/checkpoints.md, measured anew
matrix: install-test
	TRIFOCAL_MATRIX=1 $(BIN)/pytest tests/test_parity_matrix.py

# the wheel is the same, byte for byte, whoever builds it: two builds are compared
wheel: install
	rm -rf build/one build/two
	for at in one two; do $(BIN)/pip wheel -q --no-deps --no-build-isolation -w build/$$at .; done
	cmp build/one/*.whl build/two/*.whl && mkdir -p dist && cp build/one/*.whl dist/ && sha256sum dist/*.whl

# what a release is made of (CycloneDX), and every licence in it
sbom: install
	@mkdir -p dist && $(BIN)/python requirements/supply.py sbom > dist/trifocal.cdx.json && echo dist/trifocal.cdx.json

licences: install-test
	@$(BIN)/python requirements/supply.py licences

# known vulnerabilities of what is locked; asks the registry for its advisories
audit: install
	$(BIN)/pip install -q pip-audit
	$(BIN)/pip-audit --require-hashes --disable-pip -r requirements/run.lock

# what guards the promises of SECURITY.md, apart from the rest: the tests of docs/security.md's table and their twins
SAFETY = $(addprefix tests/, test_fuzz.py test_growth.py test_encoded.py test_supply.py test_bans.py test_images.py \
	test_embedded.py test_soak.py test_mutants.py checkpoints/test_damaged.py weights/test_weights.py conversation/test_jinja.py \
	engines/test_scheduler.py engines/test_contract.py engines/test_remote.py vision/test_showing.py web/test_page_routes.py \
	$(addprefix api/test_, accepting.py attacks.py bounds.py doors.py engine_process.py failpoints.py fetch.py hostile.py \
	image_embeds.py load.py room.py schema.py scopes.py serve_command.py several_models.py slow.py strict_json.py textgen.py))

test-safety: install-test
	$(BIN)/pytest -n 2 --dist loadfile --max-worker-restart 0 $(SAFETY)

# every reader of strangers' bytes against damaged ones, at full size: half an hour; what is found is kept in tests/corpus
fuzz: install-test
	TRIFOCAL_FULL=1 $(BIN)/pytest -s tests/test_fuzz.py

lock: $(VENV)/torch-$(TORCH)
	$(BIN)/pip install -q uv
	$(BIN)/python requirements/lock.py

format:
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-engines build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
