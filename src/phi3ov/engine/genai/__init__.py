"""Shared by the two engines on openvino-genai: cache sizes, grammars, drafts, NPU settings."""
