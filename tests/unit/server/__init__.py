"""Tests of the server on a scripted engine."""
