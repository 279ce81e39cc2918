"""Answer many independent conversations.

`runner` answers conversations in memory, `file` those of a JSONL file, and `records` reads and
writes the output of such a run.
"""
