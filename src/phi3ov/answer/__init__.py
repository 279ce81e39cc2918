"""What a caller may ask for, and what comes back: options, token stream, reply stream, reply."""
