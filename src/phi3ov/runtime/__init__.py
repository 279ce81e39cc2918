"""Inputs of `load_model`: OpenVINO settings, devices, rope factors, adapters, limits."""
