"""Unit tests: fake engines, tiny tokenizers, seconds."""
