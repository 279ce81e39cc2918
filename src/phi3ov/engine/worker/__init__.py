"""``engine="worker"``: openvino-genai in a child process, which answers many requests at once.

`parent` and `child` are the two ends of the pipe, `protocol` holds their messages, and `startup`
prepares the child's process. `batch` decides what each step of genai computes.
"""
