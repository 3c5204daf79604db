"""The store: the only layer that knows SQL."""
