"""Many independent conversations: in memory (`runner`) and from a JSONL file (`file`)."""
