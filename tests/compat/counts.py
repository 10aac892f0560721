"""What a test of the suite says at its end."""

import re
from dataclasses import dataclass

SKIPPED = "skipped as a whole"


class Missing(Exception):
    """What the machine lacks, and what to do about it."""


@dataclass(frozen=True)
class Counts:
    passed: int
    skipped: int
    failed: int

    def __str__(self):
        return f"{self.passed} passed, {self.skipped} skipped, {self.failed} failed"


def counts(text, status):
    """The counts of a test's last line, or how else it ended. One that skips as a whole counts none at all."""
    found = re.findall(r"PASS: (\d+).*? SKIP: (\d+).*? FAIL: (\d+)", text)
    if not found or status not in (0, 1, 77):
        return f"ended with status {status}"
    counted = Counts(*map(int, found[-1]))
    return SKIPPED if status == 77 and counted == Counts(0, 0, 0) else counted


def fails(result):
    """Whether a test failed, or did not come to its end."""
    return result.failed > 0 if isinstance(result, Counts) else result != SKIPPED
