"""python -m tests.campaign: attack for an hour, and print the counts."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from .driver import KINDS, Campaign, replay

FOLDER = Path(__file__).parents[2] / "build" / "campaign"


def main() -> int:
    """Run what the command line asks for; 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="to attack, in all runs")
    parser.add_argument("--seed", type=int, default=1, help="says which attacks these are")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, metavar="KIND")
    parser.add_argument("--jobs", type=int, default=1, help="kinds that run at once")
    parser.add_argument("--no-floors", action="store_true", help="end with the minutes")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for counts and what failed")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="make one attack again")
    asked = parser.parse_args()
    if asked.replay is not None:
        failure = replay(asked.replay, asked.folder)
        print(failure or "it no longer fails")
        return int(failure is not None)
    # Also where it was started in the background, which ignores the one and dies of the other.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    kinds = tuple(asked.kinds)
    campaign = Campaign(asked.folder, asked.seed, kinds, floors=not asked.no_floors)
    status = 0
    try:
        campaign.run(asked.minutes * 60, max(1, asked.jobs))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here")
        status = 130
    print(campaign.tally.table(kinds))
    if campaign.tally.failures:
        print(f"{campaign.tally.failures} failures: see {asked.folder}, and --replay FILE")
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
