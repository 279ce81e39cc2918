"""``engine="worker"``: openvino-genai in a child process, which answers many requests at once.

`parent` and `child` are the two ends of the pipe, `protocol` is what they say to each other.
"""
