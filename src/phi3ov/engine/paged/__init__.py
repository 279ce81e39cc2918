"""``engine="paged"``: openvino alone, with a KV cache that can be saved to a file."""
