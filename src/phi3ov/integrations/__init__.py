"""Thin adapters to other frameworks, each behind an extra of the same name.

``langchain``: a chat model in this process. ``ray``: batches on a cluster. ``ovms``: a folder for
OpenVINO Model Server, which does not need an extra.
"""
