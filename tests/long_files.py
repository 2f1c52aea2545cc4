"""The order in which workers take the tests' files: those that take longest come first."""

from __future__ import annotations

from pathlib import Path

__all__ = ["LONG", "TESTS"]

TESTS = Path(__file__).parent
# the files that take longest, longest first: 85 to 10 seconds of CPU time with all that they start. A worker that began
# one of them when the others had nothing left would keep all waiting
LONG = (
    "web/test_page_reading.py",
    "api/test_schema.py",
    "api/test_attacks.py",
    "engines/test_remote.py",
    "web/test_page_tabs.py",
    "vision/test_elsewhere.py",
    "test_parity_matrix.py",
    "web/test_page_browser.py",
    "tools/test_pull.py",
    "test_releases.py",
    "test_real_language.py",
    "api/test_load.py",
    "api/test_serve_command.py",
    "web/test_page_pictures.py",
    "engines/test_contract.py",
    "test_parity_foreign.py",
    "model/test_bundled_model.py",
    "engines/native/test_native.py",
    "cli/test_captioning.py",
    "web/test_page_models.py",
    "api/test_clients.py",
    "api/test_failpoints.py",
    "api/test_engine_process.py",
    "model/test_explain.py",
)
