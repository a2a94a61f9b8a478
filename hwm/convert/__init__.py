"""Published checkpoints, in and out. A file a family, and a verb."""
