"""What phi3ov silences or replaces in optimum, NNCF and transformers while they run."""
