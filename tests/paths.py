"""Where things lie, for tests: `from paths import ROOT, SHARED`."""

from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
REFERENCE = TESTS / "reference"
SHARED = ROOT.parent / "shared"
