"""Tokenizers; importing this registers those that checkpoints may name."""

from hwm.tokenizers import tiny  # noqa: F401
