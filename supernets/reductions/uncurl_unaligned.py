"""UNCURL without aligning inner units before the average: what the alignment is worth."""

from supernets.reductions.uncurl import Uncurl

REDUCTION = Uncurl("uncurl-unaligned", align=False)
