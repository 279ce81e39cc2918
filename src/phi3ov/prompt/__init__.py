"""Messages to token ids and back. Text written by users never becomes a control token."""
