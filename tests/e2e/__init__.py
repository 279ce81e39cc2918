"""The public surface on real models: API, command, README, guide, examples."""
