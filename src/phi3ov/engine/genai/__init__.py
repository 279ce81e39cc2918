"""What the two engines on openvino-genai share: cache sizes, grammars, drafts, NPU settings."""
