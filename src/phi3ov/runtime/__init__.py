"""Everything `load_model` is told: OpenVINO settings, devices, rope factors, adapters, limits."""
