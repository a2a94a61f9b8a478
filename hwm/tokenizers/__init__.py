"""Tokenizers; importing this registers those that checkpoints may name."""

from hwm.tokenizers import cosmos, magvit2, tiny  # noqa: F401
