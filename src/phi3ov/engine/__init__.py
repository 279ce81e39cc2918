"""Engines: token ids in, token ids out. `protocol` defines their interface.

An engine does not know about roles, templates or text.
"""
