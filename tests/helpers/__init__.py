"""Paths that several test files share."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
GOLDEN = TESTS / "golden"
DEMO = ROOT / "scripts" / "demo.mp4"
CLIPS = ROOT.parent / "shared" / "clips"  # real clips, beside a checkout of the developers
