"""Checkpoint to artifact folder: `export_model`. Needs the extra ``[export]``.

Read `export` first: it names the steps in order. `recipes` says what ``compression=`` can be.
"""
