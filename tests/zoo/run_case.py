"""Runs one case of the zoo and says what came out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.jobs import Done, run_here, verdict
from tests.zoo.case import Case

__all__ = ["Outcome", "run_case"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the proof of one case came to."""

    done: Done
    found: dict[str, Any]

    @property
    def checks(self) -> list[str]:
        """The checks that came out as the verdict did, the deciding one first."""
        status = self.found["verdict"]
        return [check["name"] for check in self.found["checks"] if check["status"] == status and check["is_needed"]]

    def wrong(self, case: Case) -> list[str]:
        """What is not as ``case`` wants it, for people; nothing, when the bug was found as it must be."""
        verdict, blame, reason = self.found["verdict"], self.found["blame"], self.found["reason"]
        facts = {
            f"verdict {verdict}, exit code {int(self.done)}": (verdict, int(self.done))
            == (case.verdict, case.exit_code),
            f"found by {self.checks}": case.check in (self.checks or [""]),
            f"blame {blame}": blame == case.blame,
            f"reason without {[word for word in case.words if word not in reason]}": all(
                w in reason for w in case.words
            ),
        }
        return [fact for fact, is_right in facts.items() if not is_right]


def run_case(case: Case, folder: Path) -> Outcome:
    """Make the proof of ``case`` in ``folder``."""
    done = run_here(folder, *case.overrides)
    return Outcome(done=done, found=verdict(folder))
