"""Silences or replaces parts of optimum, NNCF and transformers while they run."""
