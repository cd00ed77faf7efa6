"""Full disks under what PaddleNLP's own client downloads; importing it takes a while."""

from __future__ import annotations

from random import Random
from typing import Any

from . import disks

FLOOR = 200
LIMIT = disks.LIMIT


def draw(random: Random) -> dict[str, Any]:
    """Which obstacle a download meets, after how many bytes or files."""
    return disks.draw_obstacle(random, ["server"])


class Attacker(disks.Attacker):
    """Downloads to a disk of its own."""

    def _import(self) -> None:
        from paddlenlp.utils.download import bos_download, common  # noqa: F401  what is forked

        common.DOWNLOAD_CHUNK_SIZE = 4096
