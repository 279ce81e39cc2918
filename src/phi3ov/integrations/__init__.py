"""Adapters to other frameworks, each thin, and each behind an extra of its name.

``langchain``: a chat model in this process. ``ray``: batches on a cluster. ``ovms``: a folder for
OpenVINO Model Server, which needs no extra.
"""
