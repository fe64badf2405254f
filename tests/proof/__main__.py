"""`python -m tests.proof [NAME...]`: the long proofs, one after the other, before a release.

Those that fail do not hide the others; the last lines say what became of each.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from tests.proof.campaign_kills import SEEDS
from tests.support.tiny_runs import ROOT

PROOFS: dict[str, list[str]] = {
    "repeats": ["pytest", "-n", "2"],  # every test, many times where it counts
    "chaos": ["tests.proof.chaos"],
    **{f"campaign-{kind}": ["tests.proof.campaign_kills", "--study", kind] for kind in SEEDS},
    "alerts": ["tests.proof.alerts"],
    "silence": ["tests.proof.silence"],
}


def main() -> None:
    """Run the proofs named, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.proof", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PROOFS)}")
    names = parser.parse_args().names or list(PROOFS)
    if unknown := [name for name in names if name not in PROOFS]:
        parser.error(f"`{unknown[0]}` is not a proof; there are {', '.join(PROOFS)}")
    environment = os.environ | {"AALNET_PROOF": "1", "AALNET_REQUIRE_ALL": "1"}
    lines = []
    for name in names:
        print(f"== {name} ==", flush=True)
        began_s = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", *PROOFS[name]], cwd=ROOT, env=environment, check=False
        )
        result = "FAILED" if done.returncode else "ok"
        lines.append(f"{name:18} {(time.monotonic() - began_s) / 60:5.1f} min  {result}")
    print("\n".join(lines))
    sys.exit(any("FAILED" in line for line in lines))


if __name__ == "__main__":
    main()
