"""What this machine makes of a model: which settings are fastest, which devices answer rightly."""
