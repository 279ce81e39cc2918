"""Silences or replaces parts of OpenVINO, optimum, NNCF and transformers while phi3ov uses them."""
