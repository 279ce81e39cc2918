"""Generation options, token stream, reply stream and reply."""
