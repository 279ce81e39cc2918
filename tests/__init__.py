"""The tests; `unit` needs neither native inference nor torch."""
