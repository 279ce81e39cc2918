"""Structured answers: compiles a JSON schema, a regular expression or choices to a grammar.

Reading order: `shape` (the entry), `keywords` and `json_schema`, `regex`, and `ebnf` below them.
"""
