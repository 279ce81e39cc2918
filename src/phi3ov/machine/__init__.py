"""Measurements on this machine: the fastest settings, and the devices that answer correctly."""
