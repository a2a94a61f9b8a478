"""Networks of others by which pictures are compared: what metrics and losses are made of."""
