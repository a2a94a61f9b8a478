"""The two tracks of the 1X World Model Challenge on its data v2.0: compression and sampling.

What each asks for, what is known of its submissions and what is not: `docs/challenge.md`.
"""
