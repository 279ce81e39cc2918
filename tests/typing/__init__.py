"""Programs that mypy --strict and pyright check and nothing runs, and the API's snapshot."""
