"""Tests with native code: tiny random models of the whole family, compared with transformers."""
