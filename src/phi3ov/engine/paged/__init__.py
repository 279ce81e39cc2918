"""``engine="paged"``: OpenVINO without openvino-genai, with a KV cache that can be saved.

`engine` runs requests, `model` owns the compiled graph and its cache, `sampling` chooses tokens,
and `cache_file` is the file format.
"""
