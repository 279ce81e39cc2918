"""Engines: token ids in, token ids out. `protocol` says what every engine offers.

An engine knows no roles, templates or text.
"""
