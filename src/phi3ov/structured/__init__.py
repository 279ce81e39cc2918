"""Which texts an answer may be: a JSON schema, a pattern or choices, compiled to a grammar.

Reading order: `shape` (the entry), `keywords` and `json_schema`, `regex`, and `ebnf` below them.
"""
