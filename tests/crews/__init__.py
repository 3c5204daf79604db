"""Real processes with a ``Job`` each, sampled every millisecond, through all that may happen to them."""
