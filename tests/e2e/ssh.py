"""Stands in for `ssh HOST nvidia-smi …`: asks the simulated machine over the network for the memory of its cards.

usage: ssh.py URL. Prints CSV as nvidia-smi does.
"""

from __future__ import annotations

import re
import sys
import urllib.request

FREE = re.compile(r'^DCGM_FI_DEV_FB_FREE\{gpu="(\d+)",UUID="([^"]+)".*?\} (\d+)$', re.MULTILINE)
USED = re.compile(r'^DCGM_FI_DEV_FB_USED\{gpu="(\d+)".*?\} (\d+)$', re.MULTILINE)


def main(url: str) -> None:
    """Print the cards."""
    page = urllib.request.urlopen(url).read().decode()
    used = dict(USED.findall(page))
    print("index, uuid, name, memory.total [MiB], memory.free [MiB], compute_cap")
    for index, uuid, free in FREE.findall(page):
        print(f"{index}, {uuid}, NVIDIA GeForce RTX 4090, {int(free) + int(used[index])} MiB, {free} MiB, 8.9")


if __name__ == "__main__":
    main(sys.argv[1])
