"""Tokenizers; importing this registers those that checkpoints may name."""

from hwm.tokenizers import magvit2, tiny  # noqa: F401
