"""What ends a test that its time-out could not end."""

import subprocess
import sys
from pathlib import Path

STUCK = """
import threading
from concurrent.futures import ThreadPoolExecutor

def test_before() -> None:
    pass

def test_waits_for_ever() -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(threading.Event().wait).result()

def test_after() -> None:
    pass
"""


def test_a_stuck_test_ends_its_process_and_is_named(tmp_path: Path, repo_root: Path) -> None:
    (tmp_path / "test_it.py").write_text(STUCK, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.support.stuck", "--timeout", "2", "-n", "1",
         "--rootdir", tmp_path, "-c", "/dev/null", tmp_path],
        cwd=repo_root, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 1
    assert "stuck after its time-out: test_it.py::test_waits_for_ever" in done.stderr
    assert "in shutdown" in done.stderr  # where the main thread waits
    assert "1 failed, 2 passed" in done.stdout  # the others run in a new process
