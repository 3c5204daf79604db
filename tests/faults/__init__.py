"""The fault harness: real workers on private servers, broken in every way that one machine allows, and judged.

``python -m tests.faults --minutes 3 --seed 7 --broker redis`` from the repository's root.
"""
